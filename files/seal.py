"""A checksum inside files of weights, which detects a single flipped bit; torch.load and safetensors do not.

A checkpoint is a ZIP archive, and the checksum is the archive's comment: the SHA-256 of the archive without a comment.
Other programs read a sealed file as usual, and a copy keeps its seal. A .safetensors has `sha256_of` in its metadata.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from files.errors import DamagedCheckpointError

NO_COMMENT, COMMENT = b"\0\0", b"\x40\0"  # the comment's length, the last two bytes of an archive without a comment
TAIL = 2 + 64  # bytes: the length, and the checksum in hexadecimal


class Sealing:
    """A stream to write an archive to, which is hashed on the way; `seal` completes it."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.digest = stream, hashlib.sha256()

    def write(self, data) -> int:
        self.digest.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()

    def seal(self) -> None:
        """Adds the checksum and waits until the file is on the disk."""
        self.stream.seek(-len(NO_COMMENT), os.SEEK_END)
        self.stream.write(COMMENT + self.digest.hexdigest().encode())
        self.stream.flush()
        os.fsync(self.stream.fileno())


def sha256_of(tensors: dict[str, Tensor], text: str = "") -> str:
    """The checksum of a text and of named tensors: their names, shapes, types and values, in order of the names."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_seal(file: Path) -> None:
    """DamagedCheckpointError if the file has changed since it was sealed. Files that never had a seal pass."""
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
        raise DamagedCheckpointError(f"{file} is damaged: its content does not match its checksum")
