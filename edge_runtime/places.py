"""Where a store keeps personal models: for the agent that writes them, and for who serves or exports them."""

import hashlib
from pathlib import Path


def served_path(folder: Path) -> Path:
    """Say where in a store the personal model lies that is served."""
    return folder / "personal" / "served"


def personal_path(folder: Path, run: str) -> Path:
    """Say where in a store the newest personal model of a run lies."""
    return folder / "personal" / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}.bin"
