# SPDX-License-Identifier: BSD-2-Clause
"""``./tools/vm``: fetch what guests need, run a script in one, open a shell in one."""

from __future__ import annotations

import argparse
import concurrent.futures
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .cache import cache_root
from .errors import GuestError
from .lanes import LANES, lane_of
from .machine import Guest
from .packages import kernel, toolbox
from .trees import small_system, system_tree

__all__ = ["main"]


def _files(folder: str | None) -> dict[str, bytes]:
    if folder is None:
        return {}
    base = Path(folder)
    if not base.is_dir():
        raise GuestError(f"{folder} is not a directory")
    return {
        str(path.relative_to(base)): path.read_bytes()
        for path in sorted(base.rglob("*"))
        if path.is_file()
    }


def _drives(words: Sequence[str]) -> dict[str, Path]:
    drives = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals:
            name, path = Path(word).stem, word
        if not Path(path).is_file():
            raise GuestError(f"no drive image {path}")
        drives[name[:20]] = Path(path).absolute()
    return drives


def _guest(arguments: argparse.Namespace, files: dict[str, bytes]) -> Guest:
    return Guest(
        lane_of(arguments.lane),
        root=arguments.root,
        append=arguments.append,
        memory=arguments.memory,
        drives=_drives(arguments.drive),
        files=files,
    )


def _fetch(arguments: argparse.Namespace) -> int:
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        tools = pool.submit(toolbox, refresh=arguments.refresh)
        kernels = [pool.submit(kernel, lane, refresh=arguments.refresh) for lane in LANES.values()]
        trees = [pool.submit(tree, tools.result()) for tree in (system_tree, small_system)]
        for fetched in kernels:
            fetched.result()
        for built in trees:
            built.result()
    for lane in LANES.values():
        with tempfile.TemporaryDirectory() as folder:
            Guest(lane).command(Path(folder), {"mode": "script"})
        print(f"{lane.name}: {kernel(lane).release}")
    print(f"{cache_root()}: ready in {time.monotonic() - start:.1f} s")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    script = Path(arguments.script)
    if not script.is_file():
        raise GuestError(f"no script {script}")
    files = _files(arguments.files)
    files[script.name] = script.read_bytes()
    guest = _guest(arguments, files)
    words = ["/usr/bin/python3", f"/run/vm/files/{script.name}", *arguments.arguments]

    def show(event: dict[str, object]) -> None:
        if event.get("event") == "output":
            sys.stdout.write(str(event.get("text")))
            sys.stdout.flush()

    artifacts = Path(arguments.artifacts) if arguments.artifacts else None
    outcome = guest.run(
        {"mode": "script", "arguments": words},
        timeout=arguments.timeout,
        artifacts=artifacts,
        on_event=show,
    )
    if arguments.console or outcome.status is None or outcome.trouble:
        print("--- console of the guest", file=sys.stderr)
        print(outcome.console.strip(), file=sys.stderr)
    if outcome.status is None:
        print(f"tools/vm: {outcome.reason}", file=sys.stderr)
        return 3
    if outcome.retried:
        print(f"tools/vm: the guest was started twice: {outcome.retried}", file=sys.stderr)
    for line in outcome.trouble:
        print(f"tools/vm: the kernel complained: {line}", file=sys.stderr)
    return outcome.status if 0 <= outcome.status < 256 else 128 - outcome.status


def _shell(arguments: argparse.Namespace) -> int:
    guest = _guest(arguments, _files(arguments.files))
    with tempfile.TemporaryDirectory(prefix="restrict-vm-") as folder:
        command = guest.command(Path(folder), {"mode": "shell"}, interactive=True)
        print("A guest's shell; leave it with exit, or Ctrl-A x.", file=sys.stderr)
        return subprocess.run(command).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools/vm", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = commands.add_parser("fetch", help="fetch and build all that guests need")
    fetch.add_argument("--refresh", action="store_true", help="read the package lists anew")
    fetch.set_defaults(action=_fetch)
    run = commands.add_parser("run", help="run a Python script in a guest, exit with its status")
    shell = commands.add_parser("shell", help="an interactive guest on this terminal")
    for command in (run, shell):
        command.add_argument("--lane", default="7.3", choices=list(LANES))
        command.add_argument("--append", default="", help="more words for the kernel command line")
        command.add_argument("--memory", type=int, default=1024, metavar="MIB")
        command.add_argument(
            "--drive", action="append", default=[], metavar="[NAME=]FILE",
            help="one more read-only disk; the guest finds it by its serial number NAME",
        )  # fmt: skip
        command.add_argument("--files", metavar="DIR", help="copied to /run/vm/files in the guest")
        command.add_argument(
            "--root", default="signed", choices=("signed", "initramfs"),
            help="where the script runs: on the signed erofs root or still in the initramfs",
        )  # fmt: skip
    run.add_argument(
        "--timeout", type=float, default=900.0, metavar="SECONDS",
        help="end it if it says nothing for so long (default: 900)",
    )  # fmt: skip
    run.add_argument("--console", action="store_true", help="print the guest's console at the end")
    run.add_argument("--artifacts", metavar="DIR", help="keep console and events there")
    run.add_argument("script")
    run.add_argument("arguments", nargs=argparse.REMAINDER)
    run.set_defaults(action=_run)
    shell.set_defaults(action=_shell)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit status: that of the script, 2 usage, 3 the guest failed."""
    arguments = _parser().parse_args(words)
    try:
        return int(arguments.action(arguments))
    except GuestError as error:
        print(f"tools/vm: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        return 130
