# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs build|tree|successor|install``: the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from restrict.commands import command, print_json

if TYPE_CHECKING:
    from restrict.initramfs import Built

__all__ = ["add_parser"]

_SUCCESSOR = (
    "init=/usr/lib/restrict/init (`restrict initramfs successor ROOT` makes that in the root's "
    "tree: it ends the trust in the initramfs)"
)


def _print(arguments: argparse.Namespace, where: str, size: int, built: Built) -> None:
    if arguments.json:
        print_json(
            {
                "file": where,
                "bytes": size,
                "uncompressed": len(built.data),
                "interpreter": built.runtime.version,
                "modules": [m.name for m in built.modules],
                "files": {entry.name: len(entry.data) for entry in built.entries},
            }
        )
        return
    print(
        f"{where}: {size} bytes ({len(built.data)} uncompressed), Python {built.runtime.version}, "
        f"{len(built.modules)} kernel modules"
    )


def _made(arguments: argparse.Namespace, *, standalone: bool) -> Built:
    from restrict import initramfs

    return initramfs.build(
        standalone=standalone,
        configuration=arguments.config,
        modules_from=arguments.modules_from,
        modules=arguments.module or (),
        certificates=arguments.certificate or (),
        signature=arguments.signature,
        plan=arguments.plan,
        audit=arguments.audit,
        then=arguments.then,
        python=arguments.python,
        prefix=arguments.prefix,
    )


def _build(arguments: argparse.Namespace) -> int:
    from restrict import initramfs

    initramfs.kind_of(arguments.output)  # before any work is done
    built = _made(arguments, standalone=arguments.standalone)
    _print(arguments, arguments.output, initramfs.write(arguments.output, built), built)
    if not arguments.standalone and not arguments.json:
        print(
            "Put it before an initramfs (several initrd lines, or cat), and add to the kernel "
            f"command line: rdinit=/{arguments.prefix}/init {_SUCCESSOR}"
        )
    return 0


def _tree(arguments: argparse.Namespace) -> int:
    from restrict import initramfs

    built = _made(arguments, standalone=False)
    size = initramfs.write_tree(arguments.folder, built, arguments.prefix)
    _print(arguments, f"{arguments.folder}/{arguments.prefix}", size, built)
    return 0


def _successor(arguments: argparse.Namespace) -> int:
    from restrict import initramfs

    built = initramfs.build_successor(
        arguments.then, events=arguments.events, plan=arguments.plan, python=arguments.python,
        prefix=arguments.prefix,
    )  # fmt: skip
    size = initramfs.write_tree(arguments.folder, built, arguments.prefix)
    _print(arguments, f"{arguments.folder}/{arguments.prefix}", size, built)
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from restrict.initramfs_install import install

    written = install(arguments.generator, arguments.root)
    if arguments.json:
        print_json({"files": written})
    else:
        print("\n".join(written))
        print(
            "Now describe the signed root in /etc/restrict/init.conf, make the initramfs anew, and "
            "add to the kernel command line: rdinit=/restrict/init root=/dev/mapper/root ro "
            + _SUCCESSOR
        )
    return 0


def _common(parser: argparse.ArgumentParser, prefix: str) -> None:
    parser.add_argument("--plan", metavar="FILE", help="the frozen policy (`restrict bundle`)")
    parser.add_argument(
        "--python", metavar="FILE", help="the interpreter to take along (the one running this)"
    )
    parser.add_argument(
        "--prefix", default=prefix, metavar="FOLDER", help=f"where everything lies ({prefix})"
    )


def _inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE",
        help="as of `restrict init`; the files that it names (plan, certificate, signature, "
        "root_hash) are this machine's, and are taken along",
    )  # fmt: skip
    parser.add_argument(
        "--modules-from", metavar="DIR|VERSION",
        help="take kernel modules from there: dm-verity and the root's filesystem, unless the "
        "configuration lists others, with all that they need",
    )  # fmt: skip
    parser.add_argument(
        "--module", action="append", metavar="'NAME [PARAMETER=VALUE …]'",
        help="one more kernel module, loaded before those (the disk's driver)",
    )  # fmt: skip
    parser.add_argument("--certificate", action="append", metavar="FILE", help="in DER form")
    parser.add_argument("--signature", metavar="FILE", help="instead of the configuration's")
    parser.add_argument("--audit", action="store_true", help="report, but deny nothing")
    parser.add_argument(
        "--then", default="/init", metavar="PROGRAM",
        help="what a segment executes after the policy is armed (/init)",
    )  # fmt: skip


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``initramfs`` to the commands of restrict."""
    text = "make an initramfs, or a segment to put before one"
    group = commands.add_parser("initramfs", help=text, description=text)
    verbs = group.add_subparsers(required=True, metavar="VERB")

    build = command(
        verbs, "build", "build the archive; the same inputs give the same bytes", _build
    )
    build.add_argument(
        "-o", "--output", required=True, metavar="FILE",
        help="compressed as its name says: .cpio or .img not, .xz, .zst",
    )  # fmt: skip
    build.add_argument(
        "--standalone", action="store_true",
        help="a whole initramfs that boots the signed root of --config",
    )  # fmt: skip
    _inputs(build)
    _common(build, "restrict")

    text = "write a segment's files into the tree of another generator (its hook calls this)"
    tree = command(verbs, "tree", text, _tree)
    tree.add_argument("folder", metavar="DIR")
    _inputs(tree)
    _common(tree, "restrict")

    text = "write a program for init= into the tree of a root filesystem: it takes the policy over"
    successor = command(verbs, "successor", text, _successor)
    successor.add_argument("folder", metavar="DIR")
    successor.add_argument(
        "--then", default="/sbin/init", metavar="PROGRAM", help="what it executes (/sbin/init)"
    )
    successor.add_argument(
        "--events", action="store_true", help="leave a process that serves `restrict events`"
    )
    _common(successor, "usr/lib/restrict")

    from restrict.initramfs_install import GENERATORS

    text = "install the hook of another generator, which calls `restrict initramfs tree`"
    install = command(verbs, "install", text, _install)
    install.add_argument("generator", choices=sorted(GENERATORS))
    install.add_argument("--root", default="/", metavar="DIR", help="below this folder (/)")
