"""`edge-coordinator new`: a project of one's own that runs as it is."""

import argparse
import importlib.util
import keyword
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from edge_runtime.command_line import add_command
from edge_runtime.errors import ConfigError

TEMPLATE = Path(__file__).with_name("template")
_PACKAGE = "my_project"
"""What the template calls the package; so does the project unless it gets another name."""
_SUFFIX = ".in"
"""Of the template's files, which are none of our code."""
_EXAMPLES = """examples:
  edge-coordinator new my_project
  edge-coordinator new ~/fleet --name pumps
  cd my_project && python -m pytest

"""


def add_new(commands: Any) -> None:
    """Add the command `new`."""
    summary = "Make a project with a model, data and an algorithm of your own"
    new = add_command(commands, "new", summary, _EXAMPLES, _new)
    new.add_argument("path", type=Path, metavar="PATH", help="the project's folder, which must not exist yet")
    new.add_argument("--name", metavar="PACKAGE", help="of its Python package (default: as the folder is called)")


def _new(options: argparse.Namespace) -> None:
    path = options.path.expanduser()
    _check_free(path)
    made = write(path, package_name(options.name or path.resolve().name))
    sys.stdout.write("".join(f"{file}\n" for file in made))
    sys.stdout.write(f"\nnow: cd {path} && python -m pytest && edge-coordinator simulate --config run.toml\n")


def package_name(text: str) -> str:
    """Make of a text the name of a package that can be imported beside all others that are here.

    Raises:
        ConfigError: it cannot.
    """
    name = re.sub(r"[-. ]", "_", text).lower()
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or name == "tests":
        raise ConfigError(f"{text!r} cannot be the name of a Python package; give one with --name, pumps say")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name!r}: there is a package of that name already; give another with --name")
    return name


def write(path: Path, name: str) -> list[Path]:
    """Write a project whose package is called `name`, whole or not at all; gives its files.

    Raises:
        ConfigError: `path` is there and not an empty folder, or cannot be written.
    """
    _check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
            whole = Path(temporary) / "project"
            for source in sorted(TEMPLATE.rglob(f"*{_SUFFIX}")):
                target = whole / _placed(source.relative_to(TEMPLATE), name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_named(source.read_text(), name))
            whole.rename(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; choose another PATH") from error
    return sorted(file for file in path.rglob("*") if file.is_file())


def _check_free(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: is there already; choose another PATH, or remove it")


def _placed(file: Path, name: str) -> Path:
    parts = {"package": name, "gitignore.in": ".gitignore"}
    *folders, last = (parts.get(part, part) for part in file.parts)
    return Path(*folders, last.removesuffix(_SUFFIX))


def _named(text: str, name: str) -> str:
    return text.replace(_PACKAGE, name).replace(_PACKAGE.replace("_", "-"), name.replace("_", "-"))
