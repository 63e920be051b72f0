# SPDX-License-Identifier: BSD-2-Clause
"""``restrict pins install|status|protect|list|register|delegate|disown|watch|uninstall …``."""

from __future__ import annotations

import os

from restrict import pins, pins_status
from restrict.abi import PINS_KINDS
from restrict.commands import Turn, group, opened, print_json, watch
from restrict.policy import default_plan
from restrict.upgrade_cli import add_upgrade

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = ["add_parser"]


def _opened(arguments: argparse.Namespace) -> pins.Pins:
    return opened(pins.open_pinned(arguments.path), "pins", arguments.path)


def _install(arguments: argparse.Namespace) -> int:
    plan = pins.load_plan(arguments.plan or default_plan("pins"))
    stop = -1
    if arguments.foreground:
        from restrict.serve import wait_signals

        stop = wait_signals()
    owner = os.getpid() if arguments.owner is None else arguments.owner
    with pins.install(
        plan, path=arguments.path, owner=owner, audit=arguments.audit, strict=arguments.strict
    ) as policy:
        if arguments.json:
            print_json(
                {
                    "path": policy.path,
                    "mode": "audit" if arguments.audit else "deny",
                    "owner": owner,
                    "notes": policy.notes,
                }
            )
        else:
            print(f"pins: armed; {policy.path} belongs to {_owner(arguments, owner)}", flush=True)
            for note in policy.notes:
                print(f"note: {note}", flush=True)
        if arguments.foreground:
            _serve(policy, arguments.json, stop)
    return 0


def _serve(policy: pins.Pins, as_json: bool, stop: int) -> None:
    with Turn(policy.guard, "pins"):
        watch(policy.events.fileno(), "pins", as_json, stop)


def _owner(arguments: argparse.Namespace, owner: int) -> str:
    if owner == os.getpid() and not arguments.foreground:
        owner_words = f"process {owner}, which ends now"
    elif owner:
        return f"process {owner}"
    else:
        owner_words = "nobody"
    return f"{owner_words}: nobody can unload it until the machine is started again"


def _status(arguments: argparse.Namespace) -> int:
    found = pins_status.read(arguments.path)
    if arguments.json:
        print_json({"in_force": False} if found is None else found.as_dict())
    elif found is None:
        print("pins: not in force (nothing is pinned there)")
    else:
        print(found.text())
    return 0 if found is not None and found.in_force else 1


def _protect(arguments: argparse.Namespace) -> int:
    with _opened(arguments) as policy:
        new = policy.protect(arguments.directory)
        notes = policy.notes
    if arguments.json:
        print_json({"directory": arguments.directory, "new": new, "notes": notes})
    else:
        print(f"{arguments.directory}: " + ("guarded" if new else "was guarded already"))
        for note in notes:
            print(f"note: {note}")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found = opened(pins_status.read(arguments.path), "pins", arguments.path)
    if arguments.json:
        print_json(found.registered)
        return 0
    for kind, idents in found.registered.items():
        print(f"{kind}s: {' '.join(map(str, idents)) or '(none)'}")
    return 0


def _register(arguments: argparse.Namespace) -> int:
    with _opened(arguments) as policy:
        if arguments.forget:
            found = policy.unregister(arguments.kind, arguments.id)
        else:
            policy.register(arguments.kind, arguments.id)
            found = True
    if arguments.json:
        print_json({"kind": arguments.kind, "id": arguments.id, "found": found})
    elif not found:
        print(f"pins: {arguments.kind} {arguments.id} was not registered")
    return 0 if found else 1


def _delegate(arguments: argparse.Namespace) -> int:
    from restrict import keep_pins

    kept = f"{arguments.path}/kept"
    if keep_pins.in_force(kept):
        keep_pins.appoint(arguments.process or None, kept)  # of fsaccess too
    else:
        with _opened(arguments) as policy:
            policy.delegate(arguments.process or None)
    if arguments.json:
        print_json({"deputy": arguments.process or None})
    return 0


def _disown(arguments: argparse.Namespace) -> int:
    with _opened(arguments) as policy:
        policy.disown()
    if arguments.json:
        print_json({"owner": 0})
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    from restrict.serve import wait_signals

    stop = wait_signals()
    with _opened(arguments) as policy:
        _serve(policy, arguments.json, stop)
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    policy = pins.open_pinned(arguments.path)
    if policy is None:
        if arguments.json:
            print_json({"removed": False})
        else:
            print("pins: nothing is installed there")
        return 1
    left = policy.uninstall()
    if arguments.json:
        print_json({"removed": True, "links_held": left})
    elif left:
        print(f"pins: removed; somebody still holds the links {' '.join(map(str, left))}")
    return 0


def add_parser(commands: Any) -> None:
    """Add ``pins`` to the subparsers of ``restrict``."""
    text = "policies that nobody but their owner can unload"
    add = group(commands, "pins", text, "--path", pins.FOLDER, "where its bpf filesystem is")
    install = add("install", "mount a bpf filesystem and guard it", _install)
    install.add_argument("--plan", metavar="FILE", help="the frozen policy (default: restrict's)")
    install.add_argument("--audit", action="store_true", help="report, but deny nothing")
    install.add_argument(
        "--strict", action="store_true",
        help="nobody else unmounts lazily, of whatever filesystem, in this mount namespace",
    )  # fmt: skip
    install.add_argument(
        "--owner", type=int, metavar="PID",
        help="process that may unload it instead of this one (0: none)",
    )  # fmt: skip
    install.add_argument(
        "--foreground", action="store_true",
        help="stay, print events and offer them to `restrict events`, until a signal",
    )  # fmt: skip
    add("status", "tell what is guarded, for everybody", _status)
    protect = add("protect", "guard one more bpf filesystem", _protect)
    protect.add_argument("directory", help="a directory on it")
    add("list", "tell the registered ids", _list)
    for name, words in (
        ("register", "give no fd of an object by its id to others"),
        ("unregister", "take that back"),
    ):
        command = add(name, words, _register)
        command.add_argument("kind", choices=PINS_KINDS)
        command.add_argument("id", type=int, help="the kernel's id of it")
        command.set_defaults(forget=name == "unregister")
    delegate = add("delegate", "give a process the owner's rights beside the owner", _delegate)
    delegate.add_argument("process", type=int, metavar="PID", help="0 takes them back")
    add("disown", "the owner gives its rights up, until the machine is started again", _disown)
    add("watch", "print events and offer them to `restrict events`, until a signal", _watch)
    add("uninstall", "disarm and take away", _uninstall)
    add_upgrade(add)
