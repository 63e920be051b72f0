# SPDX-License-Identifier: BSD-2-Clause
"""``restrict check|enable|status|events|simulate|init|bundle|initramfs|userns|pins``.

Exit status: 0, 1 (refused, missing, not in force), 2 (usage). With --json one JSON document goes
to standard output (events: one a line); errors go to standard error. ``init`` is dispatched
before argparse is imported: PID 1 in an initramfs keeps to the small modules.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["main"]


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value), flush=True)


# ── commands ──


def _check(arguments: argparse.Namespace) -> int:
    from restrict import preflight

    findings = preflight.check()
    bad = [f for f in findings if f.blocks]
    if arguments.json:
        _print_json({"ok": not bad, "findings": [f.as_dict() for f in findings]})
        return 1 if bad else 0
    for finding in findings:
        word = "ok" if finding.ok else "MISSING" if finding.blocks else "note"
        print(f"{word:8}{finding.name}: {finding.message}")
        if finding.remedy and not finding.ok:
            print(f"{'':8}→ {finding.remedy}")
    return 1 if bad else 0


def _enable(arguments: argparse.Namespace) -> int:
    from restrict import fsaccess, keep_cli, lockout, preflight, seccomp, status
    from restrict.errors import RestrictError
    from restrict.serve import SOCKET, Server, wait_signals

    findings = preflight.check()
    missing = [f for f in findings if f.blocks]
    if missing and not arguments.force:
        preflight.require(findings)
    for finding in missing:
        print(f"restrict: forced past {finding.name}: {finding.message}", file=sys.stderr)
    owner = arguments.owner
    if owner is not None and not os.path.isdir(f"/proc/{owner}"):
        raise RestrictError(f"there is no process {owner} to own the policy.")
    kept = keep_cli.chosen(arguments)
    present = None if arguments.no_status else status.read()
    if present is not None and present.in_force and not arguments.force:
        raise RestrictError(
            f"the policy is in force already, owned by process {present.owner}.",
            hint="End that one, or add --no-status to stack a second one.",
        )
    plan = fsaccess.load_plan(arguments.plan or keep_cli.default_plan(kept))
    steps: list[str] = []
    trusted = 0
    if arguments.trust_initramfs:
        trusted = fsaccess.initramfs_device()
    before_arm = lockout.before_arm(
        plan, resumed=True, refuse=not (arguments.force or arguments.audit)
    )
    # No filter of our own: it would cover this process alone, and what it starts, which is nothing.
    poke_refused, poke = seccomp.report()
    if kept != "process":
        return keep_cli.enable(kept, arguments, plan, trusted, before_arm)
    stop = wait_signals()
    with fsaccess.enable(
        plan,
        audit=arguments.audit,
        owner=owner,
        initramfs_dev=trusted,
        before_arm=before_arm,
        status_pin=None if arguments.no_status else fsaccess.PIN,
        step=steps.append,
    ) as policy, Server(
        policy.events.fileno(), None if arguments.no_events else SOCKET
    ) as server:
        state = {
            "armed": True,
            "mode": "audit" if arguments.audit else "exec",
            "owner": os.getpid() if owner is None else owner,
            "links": {name: link.id for name, link in policy.links.items()},
            "initramfs": f"{trusted >> 20}:{trusted & 0xFFFFF}" if trusted else None,
            "status": policy.status_pin,
            "ptrace_poke": {"refused": poke_refused, "message": poke},
        }
        if arguments.json:
            _print_json(state)
        else:
            print(
                f"fsaccess is armed ({state['mode']}), owner {state['owner']}, "
                f"{len(policy.links)} programs; ends with this process"
                + ("" if poke_refused else f"\nnote: {poke}"),
                flush=True,
            )

        def show(event: object) -> None:
            if arguments.events:
                _show(event, arguments.json)

        server.run(stop, show)
    return 0


def _show(event: object, as_json: bool) -> None:
    from restrict.events import Event

    assert isinstance(event, Event)
    if as_json:
        _print_json(event.as_dict())
    else:
        print(event.text(), flush=True)


def _status(arguments: argparse.Namespace) -> int:
    from restrict import fsaccess, status

    found = status.read(arguments.path or fsaccess.PIN)
    if arguments.json:
        _print_json({"in_force": False} if found is None else found.as_dict())
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
                reader.read(
                    lambda e: _show(e, arguments.json), None if arguments.follow else 0
                )
                if not arguments.follow:
                    return 0
    from restrict.serve import SOCKETS, connect

    def consume(item: bytes | int) -> bool:
        if isinstance(item, int):
            if arguments.json:
                _print_json({"lost": item})
            else:
                print(f"{item} events were lost: this reader is too slow", flush=True)
        else:
            _show(decode(item), arguments.json)
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
        _print_json(result.as_dict())
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
        _print_json({"file": arguments.output, "bytes": size, "programs": sorted(plan.programs)})
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

    parser = argparse.ArgumentParser(
        prog="restrict", description="Execution only from signed dm-verity devices."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, run: object) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--json", action="store_true", help="machine-readable output")
        command.set_defaults(run=run)
        return command

    add("check", "tell whether every prerequisite of enforcement is there", _check)

    from restrict.commands import descriptor
    from restrict.keep import names as keep_names

    enable = add("enable", "enforce", _enable)
    enable.add_argument(
        "--keep", choices=keep_names("enable"),
        help="what keeps it: this process; or pins in a bpf filesystem under the pins policy, or "
        "nothing but the root cgroup (this process then ends); default: the strongest that this "
        "kernel allows, with --audit this process",
    )  # fmt: skip
    enable.add_argument(
        "--unguarded", action="store_true", help="with --keep pins: without the pins policy"
    )
    enable.add_argument("--mode", choices=("exec",), default="exec", help="what is restricted")
    enable.add_argument("--audit", action="store_true", help="report, but deny nothing")
    enable.add_argument(
        "--plan", metavar="FILE",
        help="the frozen policy (/usr/lib/restrict/fsaccess.plan, else restrict's own)",
    )  # fmt: skip
    enable.add_argument(
        "--owner", type=int, metavar="TGID",
        help="process that passes the guard instead of this one (1 in production)",
    )  # fmt: skip
    enable.add_argument(
        "--trust-initramfs", action="store_true",
        help="trust the initramfs this runs in while it lasts",
    )  # fmt: skip
    enable.add_argument(
        "--force", action="store_true",
        help="go on although prerequisites are missing or the machine will be locked out",
    )  # fmt: skip
    enable.add_argument("--events", action="store_true", help="print events as they come")
    enable.add_argument("--no-events", action="store_true", help="offer no socket for events")
    enable.add_argument("--no-status", action="store_true", help="pin no status in bpffs")
    enable.add_argument(
        "--foreground", action="store_true",
        help="until this process ends: --keep process (so do --events and --no-status)",
    )  # fmt: skip

    status = add("status", "tell what is in force", _status)
    status.add_argument("--path", help="pinned status file")

    events = add("events", "print denials", _events)
    events.add_argument("--follow", action="store_true", help="wait for further ones")
    events.add_argument("--fd", type=descriptor, help="ring buffer inherited from the owner")
    events.add_argument("--socket", help="socket of the reader")
    events.add_argument(
        "--policy", choices=("fsaccess", "userns", "pins"), help="of this one alone"
    )

    simulate = add("simulate", "tell what of what runs now would be denied", _simulate)
    simulate.add_argument("--filesystem", action="append", metavar="TYPE", help="type to allow")
    simulate.add_argument(
        "--assume", action="append", metavar="MOUNT", help="take this filesystem for signed"
    )

    bundle = add("bundle", "freeze the policy for an image", _bundle)
    bundle.add_argument("-o", "--output", required=True, metavar="FILE")
    bundle.add_argument("--object", metavar="OBJ", help="another fsaccess.bpf.o")
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

    from restrict.initramfs_cli import add_parser as add_initramfs
    from restrict.pins_cli import add_parser as add_pins
    from restrict.userns_cli import add_parser

    add_parser(commands)
    add_pins(commands)
    add_initramfs(commands)
    add("init", "boot a signed root as PID 1 of an initramfs (see init --help)", None)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    if given[:1] == ["init"]:
        return _init(given[1:])
    from pybpf.errors import PybpfError

    arguments = _parser().parse_args(given)
    try:
        return int(arguments.run(arguments))
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
    except KeyboardInterrupt:
        return 130
