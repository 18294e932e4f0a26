"""What all commands of both programs share: how they are described, how wrong words are answered, how they end.

A parser made by `Parser` answers an unknown flag, command or value in one line with the nearest right one, and lays its
help out in the width of the terminal. `add_command` gives a command its examples and exit codes.
"""

import argparse
import difflib
import itertools
import logging
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from edge_runtime import config, logs
from edge_runtime.errors import ConfigError, DeviceError, EdgeError

log = logging.getLogger(__name__)

EXIT_CODES = (
    "exit codes: 0 done or stopped on request, 1 a fault of this program, 2 wrong flag, key or data, 3 no broker, "
    "4 this device cannot, 5 run failed, 130 Ctrl-C\n"
)
_WIDEST = 100
"""Columns of help on a terminal that has more: longer lines are hard to read."""
_MOST_OFFERS = 3
_KINDS: dict[object, str] = {int: "a whole number", float: "a number"}

Run = Callable[[argparse.Namespace], None]
Command = Callable[..., Any]
"""Makes a command of (commands, name, summary, examples, function), as `add_command` does."""


class Layout(argparse.HelpFormatter):
    """Fills prose, and leaves what is indented, examples, in lines of their own that a shell can read."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **options)
        self._width = min(self._width, _WIDEST)

    def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
        """Name what must be there; flags that may be are listed below."""
        wanted = [group for group in groups if group.required]
        needed = {action for group in wanted for action in group._group_actions}
        kept = [one for one in actions if not one.option_strings or one.required or one in needed]
        prog = self._prog
        self._prog += "" if len(kept) == len(actions) else " [FLAGS]"
        try:
            return super()._format_usage(usage, kept, wanted, prefix)
        finally:
            self._prog = prog

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in _laid_out(text, width))


def _laid_out(text: str, width: int) -> Iterator[str]:
    lines = itertools.groupby(text.splitlines(), lambda line: not line.strip() or line.startswith("  "))
    for indented, group in lines:
        if not indented:
            yield from textwrap.wrap(" ".join(group), width, break_on_hyphens=False)
            continue
        for line in group:
            yield from _example(line, width)


def _example(line: str, width: int) -> Iterator[str]:
    """Break a command before its flags, each line but the last with a backslash; its remark goes above it."""
    if len(line) <= width:
        yield line
        return
    command, _, remark = line.partition("  #")
    if remark:
        yield from textwrap.wrap(remark.strip(), width, initial_indent="  # ", subsequent_indent="  # ")
    first, *parts = re.split(r" +(?=-|&&|> )", command.strip())
    shown = f"  {first}"
    for part in parts:
        if len(shown) + len(part) + len(" ") + len(" \\") > width:
            yield f"{shown} \\"
            shown = "     "
        shown += f" {part}"
    yield shown


class Parser(argparse.ArgumentParser):
    """An argument parser that answers what is wrong in one line, with the nearest right word."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", Layout)
        super().__init__(prog, add_help=False, allow_abbrev=False, **options)
        self.add_argument("-h", "--help", action="help", help="show this and exit")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; what is unknown is an error here, where the flags that are known are those of this command."""
        given = sys.argv[1:] if args is None else list(args)
        if config.asked_by_shell():  # a line that is not finished
            return super().parse_known_args(given, namespace)
        if self._subparsers is not None and not given:
            self.print_help(sys.stderr)
            self.exit(ConfigError.exit_code)
        self._check_flags(given)
        found, rest = super().parse_known_args(given, namespace)
        if rest:
            self.error(f"unknown flag {rest[0]!r}" if rest[0].startswith("-") else f"{rest[0]!r} is one word too many")
        return found, rest

    def _check_flags(self, given: Sequence[str]) -> None:
        """Name an unknown flag before something else is said to be missing."""
        for word in itertools.takewhile(lambda word: word != "--", given):
            if self._subparsers is not None and not word.startswith("-"):
                return
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"unknown flag {flag!r}{self._near_flag(flag)}")

    def _near_flag(self, flag: str) -> str:
        below = [path for path, parser in _commands(self) if flag in parser._option_string_actions]
        if below:
            return f"; it goes after a command that has it: {', '.join(below[:_MOST_OFFERS])}"
        known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        near = difflib.get_close_matches(flag[2:].lower().replace("_", "-"), known, 1)
        return f"; did you mean '--{near[0]}'?" if near else ""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        if not isinstance(action, argparse._SubParsersAction):
            self.error(f"{_name(action)}: {value!r} is unknown{config.nearest(str(value), known)}")
        near = difflib.get_close_matches(str(value), known, 1)
        paths = [path for path, _ in _commands(self) if path.rpartition(" ")[2] == value]
        flags = [f"--{value}"] if f"--{value}" in self._option_string_actions else []
        offer = " or ".join(map(repr, near or paths[:_MOST_OFFERS] or flags))
        self.error(
            f"unknown command {value!r}" + (f"; did you mean {offer}?" if offer else f" (known: {', '.join(known)})")
        )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in _KINDS:
                raise
            self.error(f"{_name(action)} must be {_KINDS[action.type]}, not {arg_string!r}")

    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong."""
        said = message.removeprefix("argument ").replace("the following arguments are required:", "missing:")
        said = said.replace(": must be ", " must be ", 1)
        self.exit(ConfigError.exit_code, f"{self.prog}: {said} (see {self.prog} --help)\n")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make the type of a flag that is a whole number within limits."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
        if number < least or (most is not None and number > most):
            limits = f"{least} or more" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {number}")
        return number

    return read


def _commands(parser: argparse.ArgumentParser, above: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """List the commands below a parser, each by all its words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield above + name, below
                yield from _commands(below, f"{above}{name} ")


def _name(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)


class Host(argparse.Action):
    """`-h HOST`, as in mosquitto_pub; `-h` alone still shows the help."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs="?", **{"metavar": "HOST", **options})

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Keep the host, or show the help."""
        if values is None and option_string == "-h":
            parser.print_help()
            parser.exit()
        if values is None:
            parser.error("--host: expected one argument")
        host, colon, port = values.partition(":")
        if colon and port.isdecimal():
            parser.error(f"{option_string} {values}: a port is a flag of its own: -h {host} -p {port}")
        if "//" in values:
            parser.error(f"{option_string} {values}: give a name or address alone, as in -h broker.lan")
        setattr(namespace, self.dest, values)


def add_host(parser: argparse.ArgumentParser, title: str, description: str | None = None, *, meaning: str) -> Any:
    """Make a group of flags that begins with `-h HOST`; give the group."""
    group = parser.add_argument_group(title, description, conflict_handler="resolve")
    group.add_argument("-h", "--host", action=Host, help=f"{meaning}; -h alone shows this help")
    return group


def add_command(commands: Any, name: str, summary: str, examples: str, run: Run) -> Any:
    """Add a command to `commands`, with the flags that every command has.

    Args:
        commands: what `add_subparsers` gave.
        name: of the command.
        summary: one sentence without a full stop.
        examples: a line `examples:`, then indented lines that can be typed; what else there is to say follows as prose.
        run: what the command does.
    """
    parser = add_group(commands, name, summary, examples)
    parser.set_defaults(command=run)
    add_common(parser)
    return parser


def add_group(commands: Any, name: str, summary: str, examples: str) -> Any:
    """Add a command that has commands of its own."""
    epilog = f"{examples.rstrip()}\n\n{EXIT_CODES}" if examples else EXIT_CODES
    return commands.add_parser(name, help=summary, description=f"{summary}.", epilog=epilog)


def offer(action: argparse.Action, names: Callable[[], Iterable[str]]) -> None:
    """Let a shell complete the value of a flag by names that are looked up when it asks."""
    action.completer = lambda **_: names()  # type: ignore[attr-defined]


def subcommands(parser: argparse.ArgumentParser) -> Any:
    """Let a parser have commands."""
    return parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every command has."""
    parser.add_argument("--verbose", action="store_true", help="say more on stderr: as --log-level info")
    parser.add_argument("--log", default="text", choices=logs.FORMS, help="json: an object a line (default text)")
    parser.add_argument("--log-level", choices=logs.LEVELS, help="the least that is said (default warning; json: info)")
    parser.add_argument(
        "--threads", type=whole(1), default=1, metavar="N", help="BLAS threads of each process (default 1)"
    )


def run_command(options: argparse.Namespace, program: str) -> None:
    """Run the chosen command; an error of ours becomes one line and its exit code."""
    logs.start(program, options.log, options.log_level or ("info" if options.verbose else ""))
    config.settle_environment(options.threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service manager's stop is as orderly as Ctrl-C
    try:
        options.command(options)
    except EdgeError as error:
        _end(program, error.exit_code, str(error))
    except OSError as error:
        if error.filename is None:
            raise
        log.info("what was at hand:", exc_info=True)
        _end(program, DeviceError.exit_code, f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        _end(program, 130, "stopped")
    except Exception as error:
        log.exception("what follows is for whoever mends it:")
        _end(program, 1, f"a fault of this program: {type(error).__name__}: {error}; please report it")


def _end(program: str, exit_code: int, why: str) -> NoReturn:
    """End with a last line, whatever level is heard."""
    if logs.as_json():
        log.critical("%s", why, extra={"exit_code": exit_code})
    else:
        sys.stderr.write(f"{program}: {why}\n")
    sys.exit(exit_code)


def until_signal() -> Callable[[], bool]:
    """Turn SIGTERM and SIGINT into an answer to "stop?"."""
    asked: list[int] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return lambda: bool(asked)
