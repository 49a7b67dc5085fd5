"""A seal on checkpoint files, so that one flipped bit is noticed, which torch.load does not.

A checkpoint is a ZIP archive. The seal is its comment: the SHA-256 of the archive as it was without one. Other
programs read a sealed file as ever, and a copy of the file keeps its seal.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from utils.errors import DamagedCheckpointError

NO_COMMENT, COMMENT = b"\0\0", b"\x40\0"  # a comment's length, the last two bytes of an archive without one
TAIL = 2 + 64  # bytes: that length, and the digest in hexadecimal


class Sealing:
    """A stream to write an archive to; `seal` then completes it. What is written is hashed on the way."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()

    def seal(self) -> None:
        """Adds the seal and waits until all is on the disk."""
        self.stream.seek(-len(NO_COMMENT), os.SEEK_END)
        self.stream.write(COMMENT + self.digest.hexdigest().encode())
        self.stream.flush()
        os.fsync(self.stream.fileno())


def check_seal(file: Path) -> None:
    """DamagedCheckpointError unless the file is as it was sealed, or never had a seal (another program's)."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as stream:
        is_archive = stream.read(4) == b"PK\3\4"
        stream.seek(max(0, size - TAIL))
        tail = stream.read()
        if tail[-22:-18] == b"PK\5\6" and tail.endswith(NO_COMMENT):
            return
        if not tail.startswith(COMMENT):
            if is_archive:
                raise DamagedCheckpointError(f"{file} is damaged: its end is missing or changed")
            return
        stream.seek(0)
        left = size - TAIL
        while left > 0:
            part = stream.read(min(left, 1 << 22))
            digest.update(part)
            left -= len(part)
    digest.update(NO_COMMENT)
    if digest.hexdigest().encode() != tail[2:]:
        raise DamagedCheckpointError(f"{file} is damaged: its content does not fit its checksum")
