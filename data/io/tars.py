"""Reads untrusted tars without unpacking them: only plain files with names inside the folder are members."""

import os
import tarfile
from dataclasses import dataclass
from typing import IO, TypeVar

import numpy as np

from posefleet.data.errors import DataError

BLOCK = 512
"""Bytes of a header; a member is a header, then its content padded to whole blocks."""

MAX_MEMBER_BYTES = 1 << 30
"""Maximum bytes of an image or record; an index or header with more is damaged or hostile."""

Size = TypeVar("Size", int, np.ndarray)

_MAX_HEADER_BYTES = 1 << 20  # long names make headers longer than a block

_KINDS = {
    tarfile.REGTYPE: "a file",
    tarfile.AREGTYPE: "a file",
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}

_ADVICE = "make the tar again, of plain files only"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    start: int
    """Offset of the file's first byte in the tar."""
    size: int
    """Bytes of the file."""


def whole_blocks(size: Size) -> Size:
    """Bytes in a tar of content of ``size`` bytes: padded to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def member_name(header: bytes, size: int) -> str:
    """The name in the header block of a plain file of ``size`` bytes.

    Raises:
        DataError: The block is the header of something else, or no header.
    """
    name = header[:100].rstrip(b"\0")
    if header[257:263] == b"ustar\0" and (folder := header[345:500].rstrip(b"\0")):
        name = folder + b"/" + name
    text = name.decode("utf-8", "backslashreplace")
    _check(text, header[156:157], size)
    try:
        announced = int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:  # no octal number
        announced = -1
    if announced != size:
        raise DataError(f"member {text!r}: its header is not that of a file of {size:,} bytes")
    return text


def list_members(file: IO[bytes], what: str) -> list[Member]:
    """The files of a tar, in order, without its folders. Only headers are read.

    Args:
        file: The tar, not compressed and seekable.
        what: Name of the tar in errors.

    Raises:
        DataError: The file is no tar, or a member is no plain file, has a name that leads out of a folder or comes
            twice, or announces more bytes than there can be. The message names the member.
    """
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    members: dict[str, Member] = {}
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            for entry in tar:
                name = entry.name.removeprefix("./")
                kind = tarfile.GNUTYPE_SPARSE if entry.issparse() else entry.type
                _check(name, tarfile.REGTYPE if entry.isdir() else kind, entry.size)
                if entry.offset_data + entry.size > total:
                    raise DataError(f"member {name!r}: announces {entry.size:,} bytes, and the tar has {total:,}")
                if name in members:
                    raise DataError(f"member {name!r}: comes twice")
                if not entry.isdir():
                    members[name] = Member(name, entry.offset_data, entry.size)
    except (tarfile.TarError, DataError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{what}: {error}; {_ADVICE}") from None
    return list(members.values())


def _check(name: str, kind: bytes, size: int) -> None:
    if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise DataError(f"member {name!r}: is {_KINDS.get(kind, f'of the unknown kind {kind!r}')}, not a plain file")
    if not name or name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or "\0" in name:
        raise DataError(f"member {name!r}: the name leads out of the folder that it would be unpacked in")
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise DataError(f"member {name!r}: announces {size:,} bytes, and {MAX_MEMBER_BYTES:,} are allowed")


class _Headers:
    """A file whose reads are limited to the size of a header: a hostile tar asks for terabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise DataError(f"a header announces {size:,} bytes, and {_MAX_HEADER_BYTES:,} are allowed")
        return self._read(size)
