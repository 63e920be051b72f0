# SPDX-License-Identifier: BSD-2-Clause
"""A certificate in UEFI ``db``: the variable store of OVMF, written from Python.

Linux copies the certificates in ``db`` into its ``.platform`` keyring
(security/integrity/platform_certs/load_uefi.c), secure boot or not.  The layout is EDK2's:
a firmware volume header, a VARIABLE_STORE_HEADER, then AUTHENTICATED_VARIABLE_HEADERs
(MdeModulePkg/Include/Guid/VariableFormat.h); the content of ``db`` is an EFI_SIGNATURE_LIST
(UEFI specification, 32.4.1).
"""

from __future__ import annotations

import struct
import uuid

from .errors import GuestError

__all__ = ["add_db_certificate"]

_AUTHENTICATED_STORE = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_IMAGE_SECURITY_DATABASE = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le
_CERT_X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le
_OWNER = uuid.UUID("8b9d4f0e-6c1f-4f4e-9a57-2f0c4a4f6d11").bytes_le
_START_ID = 0x55AA
_VAR_ADDED = 0x3F
# NON_VOLATILE | BOOTSERVICE_ACCESS | RUNTIME_ACCESS | TIME_BASED_AUTHENTICATED_WRITE_ACCESS
_ATTRIBUTES = 0x27
_VARIABLE = struct.Struct("<HBxIQ16sIII16s")


def add_db_certificate(store: bytes, certificate: bytes) -> bytes:
    """A copy of the variable store *store* (``OVMF_VARS_4M.fd``) with *certificate* in ``db``.

    Raises:
        GuestError: *store* is no authenticated variable store, has a ``db`` or is full.
    """
    (header_length,) = struct.unpack_from("<H", store, 48)  # EFI_FIRMWARE_VOLUME_HEADER
    if store[40:44] != b"_FVH" or store[header_length : header_length + 16] != _AUTHENTICATED_STORE:
        raise GuestError("the OVMF variable store does not begin as EDK2's authenticated stores do")
    (size,) = struct.unpack_from("<I", store, header_length + 16)
    end = header_length + size
    position = header_length + 28
    while struct.unpack_from("<H", store, position)[0] == _START_ID:
        fields = _VARIABLE.unpack_from(store, position)
        name_size, data_size, vendor = fields[6], fields[7], fields[8]
        name = store[position + _VARIABLE.size :][:name_size]
        if vendor == _IMAGE_SECURITY_DATABASE and name == "db\0".encode("utf-16-le"):
            raise GuestError("the OVMF variable store has a db already")
        position += _VARIABLE.size + name_size + data_size
        position += -position % 4
    name = "db\0".encode("utf-16-le")
    entry = _OWNER + certificate
    signatures = _CERT_X509 + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry
    variable = (
        _VARIABLE.pack(
            _START_ID, _VAR_ADDED, _ATTRIBUTES, 0, bytes(16), 0,
            len(name), len(signatures), _IMAGE_SECURITY_DATABASE,
        )
        + name
        + signatures
    )  # fmt: skip
    if position + len(variable) > end:
        raise GuestError("the OVMF variable store has no room for the certificate")
    return store[:position] + variable + store[position + len(variable) :]
