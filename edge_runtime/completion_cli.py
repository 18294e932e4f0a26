"""`completion` of both programs: what a shell needs to complete their commands, flags and values."""

import argparse
import functools
import importlib.util
import sys
from typing import Any

from edge_runtime.command_line import add_command
from edge_runtime.errors import ConfigError

_SHELLS = ("bash", "zsh", "fish")
_EXAMPLES = """examples:
  {program} completion bash > ~/.local/share/bash-completion/completions/{program}
  {program} completion zsh > ~/.zfunc/_{program}   # with ~/.zfunc in fpath, before compinit
  {program} completion fish > ~/.config/fish/completions/{program}.fish

A new shell then completes with the Tab key; the program itself is asked, so that what it offers is never out of date.

"""


def add_completion(commands: Any, program: str) -> None:
    """Add the command."""
    summary = "Print what a shell needs to complete commands and flags"
    run = functools.partial(_completion, program)
    parser = add_command(commands, "completion", summary, _EXAMPLES.format(program=program), run)
    parser.add_argument("shell", choices=_SHELLS, help="which shell: bash, zsh or fish")


def _completion(program: str, options: argparse.Namespace) -> None:
    if not importlib.util.find_spec("argcomplete"):
        raise ConfigError("completion needs argcomplete; run: pip install 'edge-runtime[completion]'")
    from argcomplete.shell_integration import shellcode

    sys.stdout.write(shellcode([program], shell=options.shell) + "\n")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell that asks what may come next, and end; it asks through the environment (`_ARGCOMPLETE`)."""
    if importlib.util.find_spec("argcomplete"):
        import argcomplete

        argcomplete.autocomplete(parser)
