# SPDX-License-Identifier: BSD-2-Clause
"""``restrict userns install|uninstall|status|put|reset|list|watch``."""

from __future__ import annotations

import os

from restrict import userns, userns_pins
from restrict.commands import Turn, group, opened, print_json, watch
from restrict.errors import system_error
from restrict.policy import default_plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = ["add_parser"]


def _opened(arguments: argparse.Namespace) -> userns.Userns:
    return opened(userns_pins.open_pinned(arguments.pins), "userns", arguments.pins)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise system_error("it cannot be opened", error, "open", path=path) from None


def _namespace(text: str) -> int | str:
    """The argument: an inode number, or the path of a namespace."""
    if not (text.isascii() and text.isdigit()):
        return text
    if len(text) > 10 or int(text) > 0xFFFFFFFF:
        import argparse

        raise argparse.ArgumentTypeError("inode numbers of namespaces have 32 bits")
    return int(text)


def _install(arguments: argparse.Namespace) -> int:
    plan = userns_pins.load_plan(arguments.plan or default_plan("userns"))
    stop = -1
    if arguments.no_pin:
        from restrict.serve import wait_signals

        stop = wait_signals()
    pins = None if arguments.no_pin else arguments.pins
    with userns_pins.install(
        plan, pins=pins, audit=arguments.audit, owner=arguments.owner
    ) as policy:
        attached = sorted(set(policy.links) - set(policy.reused))
        if arguments.json:
            print_json(
                {
                    "pins": pins,
                    "mode": "audit" if arguments.audit else "deny",
                    "attached": attached,
                    "reused": sorted(policy.reused),
                }
            )
        else:
            for name in sorted(policy.reused):
                print(f"{name}: attached already")
            print(
                f"userns: {len(attached)} programs attached, {len(policy.reused)} already were; "
                + (f"pinned in {pins}" if pins else "ends with this process"),
                flush=True,
            )
        if arguments.no_pin:
            _serve(policy, arguments.json, stop)
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    found = userns_pins.uninstall(arguments.pins)
    if arguments.json:
        print_json({"removed": found})
    elif not found:
        print("userns: nothing is pinned there")
    return 0 if found else 1


def _put(arguments: argparse.Namespace) -> int:
    fds: list[int] = []
    try:
        with _opened(arguments) as policy:
            for path in arguments.mount or ():
                fds.append(_open(path, os.O_PATH))
            options: dict[str, Any] = {
                "replace": arguments.replace, "deny_setgroups": arguments.deny_setgroups
            }  # fmt: skip
            inode = arguments.namespace
            if isinstance(inode, int):
                policy.put_by_inode(inode, fds, **options)
            else:
                fds.append(_open(inode, os.O_RDONLY))
                inode = policy.put_by_fd(fds[-1], fds[:-1], **options)
    finally:
        for fd in fds:
            os.close(fd)
    if arguments.json:
        print_json({"inode": inode})
    return 0


def _reset(arguments: argparse.Namespace) -> int:
    inode = arguments.namespace
    if isinstance(inode, str):
        fd = _open(inode, os.O_RDONLY)
        try:
            inode = userns.namespace_inode(fd)
        finally:
            os.close(fd)
    with _opened(arguments) as policy:
        found = policy.reset_by_inode(inode)
    if arguments.json:
        print_json({"inode": inode, "removed": found})
    elif not found:
        print(f"userns: namespace {inode} was not managed")
    return 0 if found else 1


def _list(arguments: argparse.Namespace) -> int:
    with _opened(arguments) as policy:
        policy.remove_ended()
        entries = policy.namespaces()
    programs = userns_pins.pinned_links(arguments.pins)
    if arguments.json:
        print_json({"programs": programs, "namespaces": [e.as_dict() for e in entries]})
        return 0
    print(f"userns: {len(programs)} programs attached, {len(entries)} namespaces managed")
    for entry in entries:
        mounts = "-" if entry.mounts is None else " ".join(map(str, entry.mounts)) or "(none)"
        more = ", setgroups denied" if entry.deny_setgroups else ""
        print(f"{entry.inode}: mounts {mounts}{more}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from restrict import userns_status

    found = userns_status.read(arguments.pins)
    if arguments.json:
        print_json({"in_force": False} if found is None else found.as_dict())
    elif found is None:
        print(f"userns: not installed in {arguments.pins}")
    else:
        print(found.text())
    return 0 if found is not None and found.in_force else 1


def _serve(policy: userns.Userns, as_json: bool, stop: int) -> None:
    """Take out what has ended, print denials, and offer them to `restrict events`."""

    def ended() -> None:
        for inode in policy.remove_ended():
            if as_json:
                print_json({"event": "ended", "inode": inode})
            else:
                print(f"namespace {inode} has ended", flush=True)

    ended()
    watch(policy.maps["events"].fileno(), "userns", as_json, stop, (policy.fileno(), ended))


def _watch(arguments: argparse.Namespace) -> int:
    from restrict.serve import wait_signals

    stop = wait_signals()
    with _opened(arguments) as policy, Turn(f"{arguments.pins}/programs", "userns"):
        _serve(policy, arguments.json, stop)
    return 0


def add_parser(commands: Any) -> None:
    """Add ``userns`` to the subparsers of ``restrict``."""
    text = "members of delegated user namespaces leave no inode behind"
    add = group(commands, "userns", text, "--pins", userns_pins.PINS, "where its pins are")

    install = add("install", "load and attach; what is pinned already is reused", _install)
    install.add_argument("--plan", metavar="FILE", help="the frozen policy (default: restrict's)")
    install.add_argument("--audit", action="store_true", help="report, but deny nothing")
    install.add_argument(
        "--no-pin", action="store_true", help="run until a signal, and watch meanwhile"
    )
    install.add_argument(
        "--owner", type=int, metavar="PID",
        help="from now on this process alone may open the policy's maps "
        "(default: CAP_SYS_ADMIN in the initial user namespace)",
    )  # fmt: skip
    add("uninstall", "remove the pins, and so the policy", _uninstall)
    add("status", "tell what is in force; works without privileges", _status)

    put = add("put", "manage a namespace, or add to its mounts", _put)
    inode = "inode number, or a path such as /proc/PID/ns/user"
    put.add_argument("namespace", type=_namespace, help=inode)
    put.add_argument(
        "--mount", action="append", metavar="PATH", help="inodes may be created on its mount"
    )
    put.add_argument("--replace", action="store_true", help="forget the mounts listed before")
    groups = put.add_mutually_exclusive_group()
    groups.add_argument(
        "--deny-setgroups", action="store_const", const=True, help="members may not call setgroups"
    )
    groups.add_argument(
        "--allow-setgroups", dest="deny_setgroups", action="store_const", const=False,
        help="take that back",
    )  # fmt: skip

    reset = add("reset", "manage a namespace no longer", _reset)
    reset.add_argument("namespace", type=_namespace, help=inode)
    add("list", "tell what is managed", _list)
    add("watch", "take out namespaces that end, and print denials, until a signal", _watch)
