"""What can go wrong, by whose fault it is.

EdgeError
├── ConfigError   you wrote it wrong: a flag, a key, a data folder. Exit code 2. Fix it and start again.
├── LinkError     the network or the broker. Retried with back-off; exit code 3 where a start depends on it.
├── DeviceError   this device cannot do what it was asked to: disk full, backend missing. Exit code 4.
└── RunError      the run cannot go on. Exit code 5.
DecodeError       the other side sent nonsense. Dropped and counted, never fatal.

A message is one line that says what is wrong, where, and what to do. `DecodeError` stands in `compression/errors.py`,
because that folder imports nothing of ours.
"""

from edge_runtime.compression.errors import DecodeError

__all__ = ["ConfigError", "DecodeError", "DeviceError", "EdgeError", "LinkError", "RunError"]


class EdgeError(Exception):
    """Base of every error that this project raises on purpose."""

    exit_code = 1


class ConfigError(EdgeError):
    """A person or a file asked for something that cannot be."""

    exit_code = 2


class LinkError(EdgeError):
    """The broker cannot be reached or refuses us."""

    exit_code = 3


class DeviceError(EdgeError):
    """This device cannot do the work."""

    exit_code = 4


class RunError(EdgeError):
    """The run cannot go on."""

    exit_code = 5
