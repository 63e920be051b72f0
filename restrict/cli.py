# SPDX-License-Identifier: BSD-2-Clause
"""``restrict check|enable|status|events|simulate|init|bundle|initramfs|userns|pins``.

Exit status: 0, 1 (refused, missing, not in force), 2 (usage). With --json one JSON document goes
to standard output (events: one a line); errors go to standard error. ``init`` is dispatched
before argparse is imported: PID 1 in an initramfs keeps to the small modules.
"""

from __future__ import annotations

import errno
import os
import sys

from restrict.commands import command, descriptor, print_json, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main"]


# ── commands ──


def _check(arguments: argparse.Namespace) -> int:
    from restrict import preflight

    findings = preflight.check()
    bad = [f for f in findings if f.blocks]
    if arguments.json:
        print_json({"ok": not bad, "findings": [f.as_dict() for f in findings]})
        return 1 if bad else 0
    for finding in findings:
        word = "ok" if finding.ok else "MISSING" if finding.blocks else "note"
        print(f"{word:8}{finding.name}: {finding.message}")
        if finding.remedy and not finding.ok:
            print(f"{'':8}→ {finding.remedy}")
    return 1 if bad else 0


def _status(arguments: argparse.Namespace) -> int:
    from restrict import fsaccess, status

    found = status.read(arguments.path or fsaccess.PIN)
    if arguments.json:
        print_json({"in_force": False} if found is None else found.as_dict())
    elif found is None:
        print("fsaccess: not in force (nothing is pinned; a policy may still run unseen)")
    else:
        print(found.text())
    return 0 if found is not None and found.in_force else 1


def _events(arguments: argparse.Namespace) -> int:
    from restrict.events import Reader, decode

    if arguments.fd is not None:
        with Reader(arguments.fd) as reader:
            while True:
                reader.read(lambda e: show(e, arguments.json), None if arguments.follow else 0)
                if not arguments.follow:
                    return 0
    from restrict.serve import SOCKETS, connect

    def consume(item: bytes | int) -> bool:
        if isinstance(item, int):
            if arguments.json:
                print_json({"lost": item})
            else:
                print(f"{item} events were lost: this reader is too slow", flush=True)
        else:
            show(decode(item), arguments.json)
        return True

    paths: tuple[str, ...]
    if arguments.socket:
        paths = (arguments.socket,)
    else:
        paths = (SOCKETS[arguments.policy],) if arguments.policy else tuple(SOCKETS.values())
    if not connect(consume, follow=arguments.follow, path=paths):
        print(
            f"restrict: nobody offers events at {' or '.join(paths)}: is a policy in force, with a "
            "reader? See `restrict status`, `restrict userns status`.",
            file=sys.stderr,
        )
        return 1
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    from restrict import simulate

    result = simulate.simulate(
        filesystems=arguments.filesystem or ("erofs", "squashfs"), assume=arguments.assume or ()
    )
    if arguments.json:
        print_json(result.as_dict())
    else:
        print(simulate.text(result))
    return 1 if result.denials else 0


def _bundle(arguments: argparse.Namespace) -> int:
    from restrict import bundle, bundle_ownerless
    from restrict.errors import ConfigError

    filesystems = arguments.filesystem or ("erofs", "squashfs")
    if arguments.ownerless:
        if arguments.deny_ptrace or arguments.gate_device_mapper:
            raise ConfigError(
                "the ownerless policy has no hook for --deny-ptrace or --gate-device-mapper."
            )
        plan = bundle_ownerless.build(
            arguments.object or bundle_ownerless.OBJECT,
            filesystems=filesystems,
            policy_version=arguments.policy_version,
        )
    else:
        plan = bundle.build(
            arguments.object or bundle.OBJECT,
            filesystems=filesystems,
            deny_ptrace=arguments.deny_ptrace,
            gate_device_mapper=arguments.gate_device_mapper,
            policy_version=arguments.policy_version,
        )
    size = bundle.write(plan, arguments.output)
    if arguments.json:
        print_json({"file": arguments.output, "bytes": size, "programs": sorted(plan.programs)})
    else:
        print(f"{arguments.output}: {size} bytes, {len(plan.programs)} programs")
    return 0


def _init(words: Sequence[str]) -> int:
    """``restrict init [CONFIG]`` and ``restrict init --resume [--plan FILE] … -- PROGRAM …``."""
    from restrict import config, init, resume

    rest = list(words)
    if rest and rest[0] in ("-h", "--help"):
        print(
            "usage: restrict init [CONFIG]\n"
            "       restrict init --resume [--plan FILE] [--pins-plan FILE] [--events] -- PROGRAM "
            "[ARGUMENT …]\n\n"
            "As PID 1 of an initramfs: enforce, then boot the signed root that CONFIG\n"
            f"({config.DEFAULT_PATH}) describes.\n"
            "--resume: as its successor on that root, take the policy over and execute PROGRAM\n"
            "with it. The keys of CONFIG:\n"
        )
        print((config.__doc__ or "").partition("\n\n")[2])
        return 0
    if rest and rest[0] == "--resume":
        rest = rest[1:]
        files: dict[str, str | None] = {"--plan": None, "--pins-plan": None}
        events = False
        while rest and rest[0] in (*files, "--events"):
            if rest[0] == "--events":
                events, rest = True, rest[1:]
            elif len(rest) > 1:
                files[rest[0]], rest = rest[1], rest[2:]
            else:
                break
        if rest[:1] != ["--"] or len(rest) < 2:
            print("restrict: init --resume needs `-- PROGRAM …`", file=sys.stderr)
            return 2
        return resume.resume(
            rest[1:], plan_path=files["--plan"], pins_plan=files["--pins-plan"], events=events
        )
    if len(rest) > 1 or (rest and rest[0].startswith("-")):
        print(f"restrict: init takes one file, not {' '.join(rest)!r}", file=sys.stderr)
        return 2
    return init.main(*rest)


# ── the command line ──


def _parser() -> argparse.ArgumentParser:
    import argparse

    from restrict.abi import POLICIES
    from restrict.enable_cli import add_parser as add_enable
    from restrict.initramfs_cli import add_parser as add_initramfs
    from restrict.pins_cli import add_parser as add_pins
    from restrict.userns_cli import add_parser as add_userns

    parser = argparse.ArgumentParser(
        prog="restrict",
        description="Policies of a verified system: execution only from signed dm-verity devices; "
        "user namespaces that leave nothing behind; pins that cannot be pulled.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command(commands, "check", "tell whether every prerequisite of enforcement is there", _check)
    add_enable(commands)

    status = command(commands, "status", "tell what of the execution policy is in force", _status)
    status.add_argument("--path", metavar="FILE", help="the pinned status")

    events = command(commands, "events", "print the denials of all policies", _events)
    events.add_argument("--follow", action="store_true", help="wait for further ones")
    source = events.add_mutually_exclusive_group()
    source.add_argument("--fd", type=descriptor, help="a ring buffer inherited from the owner")
    source.add_argument("--socket", metavar="PATH", help="the socket of a reader")
    source.add_argument("--policy", choices=[name for name, *_ in POLICIES], help="of this alone")

    simulate = command(
        commands, "simulate", "tell what of what runs now would be denied", _simulate
    )
    simulate.add_argument("--filesystem", action="append", metavar="TYPE", help="type to allow")
    simulate.add_argument(
        "--assume", action="append", metavar="MOUNT", help="take this filesystem for signed"
    )

    bundle = command(commands, "bundle", "freeze the execution policy for an image", _bundle)
    bundle.add_argument("-o", "--output", required=True, metavar="FILE", help="where to")
    bundle.add_argument("--object", metavar="FILE", help="another fsaccess.bpf.o")
    bundle.add_argument(
        "--ownerless", action="store_true", help="the policy for --keep ownerless (Linux 6.16)"
    )
    bundle.add_argument("--filesystem", action="append", metavar="TYPE", help="type to allow")
    bundle.add_argument(
        "--deny-ptrace", action="store_true", help="nobody attaches to another process"
    )
    bundle.add_argument(
        "--gate-device-mapper", action="store_true",
        help="nobody but the owner changes device-mapper tables (stops LVM, LUKS …)",
    )  # fmt: skip
    bundle.add_argument(
        "--policy-version", type=int, metavar="N", help="what an upgrade compares (the object's)"
    )

    add_userns(commands)
    add_pins(commands)
    add_initramfs(commands)
    command(commands, "init", "boot a signed root as PID 1 of an initramfs", None)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    if given[:1] == ["init"]:
        return _init(given[1:])
    from pybpf.errors import PybpfError
    from restrict.errors import describe

    if None in (sys.stdin, sys.stdout, sys.stderr):
        from pybpf.sys.files import open_streams

        open_streams()
    try:
        if given == ["--version"]:
            from pybpf import __version__

            print(f"restrict {__version__}")
            status = 0
        else:
            arguments = _parser().parse_args(given)
            status = int(arguments.run(arguments))
        sys.stdout.flush()  # a full disk is told here, not at the interpreter's end
        return status
    except PybpfError as e:
        print(f"restrict: {e}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as e:
        if e.name is None or not e.name.startswith("elftools"):
            raise
        print(f"restrict: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output is gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as e:  # of a system without /proc, say: no place for a traceback
        print(f"restrict: {describe(e)}", file=sys.stderr)
        if e.errno == errno.ENOSPC and e.filename is None:  # our output: what waits of it is lost
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except KeyboardInterrupt:
        return 130
