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


def seal(archive: BinaryIO) -> None:
    """Adds the checksum to an open archive that has no comment, and waits until it is on the disk."""
    archive.seek(0)
    digest = hashlib.sha256()
    for part in iter(lambda: archive.read(1 << 20), b""):
        digest.update(part)
    archive.seek(-len(NO_COMMENT), os.SEEK_END)
    archive.write(COMMENT + digest.hexdigest().encode())
    archive.flush()
    os.fsync(archive.fileno())


def sha256_of(tensors: dict[str, Tensor], text: str = "") -> str:
    """The checksum of a text and of named tensors: their names, shapes, types and values, in order of the names."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_seal(file: Path) -> None:
    """DamagedCheckpointError if the file has changed since it was sealed. Files that never had a seal pass."""
    content = memoryview(file.read_bytes())
    tail = bytes(content[-TAIL:])
    if tail.startswith(COMMENT):
        digest = hashlib.sha256(content[:-TAIL])
        digest.update(NO_COMMENT)
        if digest.hexdigest().encode() != tail[2:]:
            raise DamagedCheckpointError(f"{file} is damaged: its content does not match its checksum")
    elif content[:4] == b"PK\3\4" and tail[-22:-18] != b"PK\5\6":
        raise DamagedCheckpointError(f"{file} is damaged: its end is missing or changed")
