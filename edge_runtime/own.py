"""Code of the user's own, `package.module` or `package.module:name`: importing it, and saying in one line why not.

It is found where Python finds all else: installed in this environment, or on PYTHONPATH. What a device imports, its
owner has named there; no message names code that runs (`docs/decisions/015-code-of-your-own.md`).
"""

import importlib
from types import ModuleType
from typing import Any

from edge_runtime.errors import ConfigError


def is_module(name: str) -> bool:
    """Say whether a name is that of a module: `my_project.fedmine`."""
    return all(part.isidentifier() for part in name.split("."))


def module(name: str, what: str) -> ModuleType:
    """Import a module; `what` it is to be begins the error.

    Raises:
        ConfigError: it is not there, or importing it raises.
    """
    if not is_module(name):
        raise ConfigError(f"{what}: {name!r} is not the name of a module; write package.module")
    try:
        return importlib.import_module(name)
    except Exception as error:  # it is the user's code, which may raise anything
        raise ConfigError(f"{what}: {name!r} cannot be loaded: {said(error)}; install it here, or mend it") from error


def find(path: str, what: str) -> Any:
    """Import `package.module:name`; `what` it is to be begins the error.

    Raises:
        ConfigError: it is not there, or importing it raises.
    """
    name, _, attribute = path.partition(":")
    found = module(name, what)
    if not hasattr(found, attribute):
        raise ConfigError(f"{what}: {path!r} cannot be loaded: {found.__file__} has no {attribute!r}; mend the name")
    return getattr(found, attribute)


def said(error: Exception) -> str:
    """Put what the user's code had to say into one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
