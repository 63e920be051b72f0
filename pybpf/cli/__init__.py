# SPDX-License-Identifier: BSD-2-Clause
"""``pybpf …``: the library's operations as commands.

Human text by default, JSON with --json. Exit status: 0 done, 1 refused or mismatched, 2 wrong
usage. Errors go to standard error, one paragraph each.

What a command imports is most of the time that it takes: argparse is imported where there are
options that it must read, a command's module when it is called, and what reads objects when there
is one to read.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from pybpf.errors import PybpfError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

__all__ = ["console", "main"]

# Command → (module with add(parser) and run(args), what it does); ``live`` has an add a command.
_COMMANDS = {
    "relocate": ("relocate", "print an object's final instructions for a kernel; no privileges"),
    "verify": ("verify", "load an object's programs and tell the verifier's verdict; no attaching"),
    "bundle": ("bundle", "compile an object to a Plan file"),
    "run": ("run", "load and attach a Plan file or an object, until interrupted"),
    "inspect": ("inspect", "tell what an object or a Plan file holds"),
    "disasm": ("disasm", "disassemble an object's programs"),
    "prog": ("live", "list, show and dump programs in the kernel"),
    "map": ("live", "list, show and dump maps in the kernel"),
    "link": ("live", "list and show links in the kernel"),
    "btf": ("live", "list and show BTF in the kernel; dump any BTF, also as C"),
    "features": ("features", "try what the running kernel can do"),
}
_EPILOG = """\
for a start:
  pybpf inspect x.bpf.o                  maps, programs, what kernel they need; no privileges
  pybpf relocate x.bpf.o --btf FILE      every relocation, for any kernel; no privileges
  pybpf verify x.bpf.o                   would this kernel take it, and if not, why
  pybpf run x.bpf.o                      load and attach, until Ctrl-C
  pybpf map dump NAME                    what is in a map, by its types
All of them tell more with --help, and most take --json. Exit status: 0 done, 1 refused or
mismatched, 2 wrong usage.
"""


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pybpf-restrict")
    except PackageNotFoundError:
        return "from a source tree, not installed"


class _Version:
    command = "--version"


def _tell_version(_args: Any) -> int:
    print(f"pybpf {_version()}")
    return 0


def _parse(arguments: Sequence[str]) -> tuple[Callable[[Any], int], Any]:
    """(what runs the command, its arguments). Raises SystemExit, as argparse does.

    Only the module of the command that is called is imported.
    """
    if arguments == ["--version"]:
        return _tell_version, _Version
    if arguments[:1] == ["run"]:
        from pybpf.cli import run

        plain = run.plain(arguments[1:])
        if plain is not None:
            return run.run, plain
    parser, runners = _parser(arguments)
    args = parser.parse_args(arguments)
    return runners[args.command], args


def _parser(
    arguments: Sequence[str],
) -> tuple[argparse.ArgumentParser, dict[str, Callable[[Any], int]]]:
    """The parser, with the options of the one command that is called: only its module loads."""
    import argparse
    from importlib import import_module

    from pybpf.cli import quick

    class Help(argparse.HelpFormatter):
        def __init__(self, prog: str) -> None:
            # Without a width argparse imports shutil, 3 ms, also where no help is printed.
            super().__init__(prog, width=_columns())

    class Overview(Help, argparse.RawDescriptionHelpFormatter):
        """The epilog as it is."""

    parser = argparse.ArgumentParser(
        prog="pybpf",
        description="A BPF loader in pure Python: load, relocate, inspect and explain BPF objects.",
        epilog=_EPILOG,
        formatter_class=Overview,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    runners: dict[str, Callable[[Any], int]] = {}
    for name, (where, text) in _COMMANDS.items():
        sub = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", formatter_class=Help
        )
        if name in arguments[:1]:
            if where not in ("run", "live", "features"):  # those read objects seldom, if at all
                quick.import_pyelftools()
            module = import_module(f"pybpf.cli.{where}")
            declare = getattr(module, f"add_{name}" if where == "live" else "add")
            declare(sub)
            runners[name] = module.run
    return parser, runners


def _columns() -> int:
    """The width of help, as argparse has it."""
    try:
        return int(os.environ["COLUMNS"]) - 2
    except (KeyError, ValueError):
        pass
    try:
        return (os.get_terminal_size(1).columns or 80) - 2
    except OSError:
        return 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from pybpf.sys.files import open_streams

        open_streams()
    try:
        runner, args = _parse(arguments)
    except SystemExit as exc:  # argparse: --help 0, wrong usage 2
        return exc.code if isinstance(exc.code, int) else 2
    except ModuleNotFoundError as exc:
        return _without(exc, arguments[0])
    # Text of ours and names of others' objects have characters that a terminal may lack.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = runner(args)
        sys.stdout.flush()
        return status
    except UsageError as exc:
        print(f"pybpf {args.command}: {exc}", file=sys.stderr)
        return 2
    except PybpfError as exc:
        print(f"pybpf {args.command}: {exc}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as exc:
        return _without(exc, args.command)
    except BrokenPipeError:
        # Whoever read our output has gone: nothing more to say, and nothing to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"pybpf {args.command}: {where}{exc.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _without(missing: ModuleNotFoundError, command: str) -> int:
    """pyelftools is not there, without which bundles run and nothing else does."""
    if missing.name is None or not missing.name.startswith("elftools"):
        raise missing
    print(f"pybpf {command}: {missing}", file=sys.stderr)
    return 1


def console() -> NoReturn:
    """Run the command of this process' arguments and end the process.

    The interpreter is not torn down: nothing is left to do once the output is written, and
    freeing what was imported takes a fifth of a short command's time. Handlers of atexit do not
    run; pybpf has none.
    """
    import gc

    from pybpf.cli import quick

    gc.set_threshold(50_000)  # from 700: importing makes much and leaves no garbage
    quick.own_process = True
    status = main()
    try:
        sys.stderr.flush()
        sys.stdout.flush()
    except OSError:
        status = status or 1  # our reader has gone, or there is no room for what was said
    os._exit(status)
