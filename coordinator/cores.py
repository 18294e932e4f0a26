"""Which of the two cores of the protocol a run needs, and when."""

from edge_runtime.coordinator.actions import Plan, Progress
from edge_runtime.coordinator.rounds import RoundsCore
from edge_runtime.coordinator.versions import VersionsCore

Core = RoundsCore | VersionsCore


def kind(plan: Plan, progress: Progress) -> type[Core]:
    """Choose how the run goes on; what an asynchronous run does before and after its training are rounds."""
    return VersionsCore if plan.asynchronous and progress.phase == "train" else RoundsCore


def begin(plan: Plan, progress: Progress) -> Core:
    """Make the core with which the run goes on from here."""
    return kind(plan, progress)(plan, progress)
