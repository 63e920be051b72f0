# SPDX-License-Identifier: BSD-2-Clause
"""Keys that sign root hashes: the project's signer and a foreign one, made once per cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_root, publish
from .packages import Toolbox

__all__ = ["Signer", "signer"]

_CONFIG = """[req]
prompt = no
distinguished_name = name
x509_extensions = signer
string_mask = utf8only
[name]
CN = {name}
[signer]
basicConstraints = critical,CA:FALSE
keyUsage = digitalSignature
subjectKeyIdentifier = hash
"""


@dataclass(frozen=True)
class Signer:
    """A private key with its self-signed certificate."""

    folder: Path
    tools: Toolbox

    @property
    def key(self) -> Path:
        """The private key, PEM."""
        return self.folder / "key.pem"

    @property
    def certificate(self) -> Path:
        """The certificate, PEM."""
        return self.folder / "certificate.pem"

    def der(self) -> bytes:
        """The certificate, DER: what add_key("asymmetric") and UEFI ``db`` take."""
        return (self.folder / "certificate.der").read_bytes()

    def sign(self, root_hash: str) -> bytes:
        """A detached PKCS#7 signature, DER, over the hexadecimal text of *root_hash*."""
        return self.tools.run(
            "openssl", "smime", "-sign", "-nocerts", "-noattr", "-binary", "-md", "sha256",
            "-inkey", str(self.key), "-signer", str(self.certificate), "-outform", "der",
            data=root_hash.encode("ascii"),
        )  # fmt: skip


def signer(tools: Toolbox, name: str = "signer") -> Signer:
    """The key pair *name*: ``signer`` is the one the guest trusts, any other is foreign."""

    def build(folder: Path) -> None:
        config = folder / "openssl.cnf"
        config.write_text(_CONFIG.format(name=f"pybpf-restrict test {name}"))
        previous = os.umask(0o077)
        try:
            tools.run(
                "openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256",
                "-days", "36500", "-config", str(config), "-keyout", str(folder / "key.pem"),
                "-out", str(folder / "certificate.pem"),
            )  # fmt: skip
        finally:
            os.umask(previous)
        tools.run(
            "openssl", "x509", "-in", str(folder / "certificate.pem"),
            "-outform", "der", "-out", str(folder / "certificate.der"),
        )  # fmt: skip

    folder = cache_root() / "keys" / name
    return Signer(publish(folder, build, f"the test key {name}"), tools)
