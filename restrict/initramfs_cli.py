# SPDX-License-Identifier: BSD-2-Clause
"""``restrict initramfs build``: the command line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restrict.initramfs import Built

__all__ = ["add_parser"]


def _print(arguments: argparse.Namespace, file: str, size: int, built: Built) -> None:
    largest = sorted(built.entries, key=lambda entry: -len(entry.data))[:5]
    if arguments.json:
        import json

        print(
            json.dumps(
                {
                    "file": file,
                    "bytes": size,
                    "uncompressed": len(built.data),
                    "interpreter": built.runtime.version,
                    "modules": [m.name for m in built.modules],
                    "files": {entry.name: len(entry.data) for entry in built.entries},
                }
            ),
            flush=True,
        )
        return
    print(
        f"{file}: {size} bytes ({len(built.data)} uncompressed), Python {built.runtime.version}, "
        f"{len(built.modules)} kernel modules; largest: "
        + ", ".join(f"{entry.name} {len(entry.data)}" for entry in largest)
    )
    if not arguments.standalone:
        print(
            "Put it before an initramfs (several initrd lines, or cat) and add "
            f"rdinit=/{arguments.prefix}/init to the kernel command line."
        )


def _build(arguments: argparse.Namespace) -> int:
    from restrict import initramfs

    initramfs.kind_of(arguments.output)
    built = initramfs.build(
        standalone=arguments.standalone,
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
    size = initramfs.write(arguments.output, built)
    _print(arguments, arguments.output, size, built)
    return 0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``initramfs`` to the commands of restrict."""
    text = "make an initramfs, or a segment to put before one"
    group = commands.add_parser("initramfs", help=text, description=text)
    verbs = group.add_subparsers(required=True, metavar="VERB")

    text = "build the archive; the same inputs give the same bytes"
    build = verbs.add_parser("build", help=text, description=text)
    build.add_argument("--json", action="store_true", help="machine-readable output")
    build.add_argument(
        "-o", "--output", required=True, metavar="FILE",
        help="compressed as its name says: .cpio or .img not, .xz, .zst",
    )  # fmt: skip
    build.add_argument(
        "--standalone", action="store_true",
        help="a whole initramfs that boots the signed root of --config",
    )  # fmt: skip
    build.add_argument(
        "--config", metavar="FILE",
        help="as of `restrict init`; the files that it names (plan, certificate, signature, "
        "root_hash) are this machine's, and are taken along",
    )  # fmt: skip
    build.add_argument(
        "--modules-from", metavar="DIR|VERSION",
        help="take kernel modules from there: dm-verity and the root's filesystem, unless the "
        "configuration lists others, with all that they need",
    )  # fmt: skip
    build.add_argument(
        "--module", action="append", metavar="'NAME [PARAMETER=VALUE …]'",
        help="one more kernel module, loaded before those (the disk's driver)",
    )  # fmt: skip
    build.add_argument("--certificate", action="append", metavar="FILE", help="in DER form")
    build.add_argument("--signature", metavar="FILE", help="instead of the configuration's")
    build.add_argument("--plan", metavar="FILE", help="the frozen policy (`restrict bundle`)")
    build.add_argument("--audit", action="store_true", help="report, but deny nothing")
    build.add_argument(
        "--then", default="/init", metavar="PROGRAM",
        help="what a segment executes after the policy is armed (/init)",
    )  # fmt: skip
    build.add_argument(
        "--python", metavar="FILE", help="the interpreter to take along (the one running this)"
    )
    build.add_argument(
        "--prefix", default="restrict", metavar="FOLDER",
        help="where everything lies in the initramfs (restrict)",
    )  # fmt: skip
    build.set_defaults(run=_build)
