"""Files that exist completely or not at all: written beside their place, synced, and renamed when complete.

An incomplete file is named .NAME.<16 hex digits>.part. One that nobody has written to for a day was left by a process
that died, and `clear_parts` removes it.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
DAY = 24 * 60 * 60  # seconds


@contextmanager
def writing(file: Path, size: int, exclusive: bool = False, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream to write `file` to (and read), which takes its name when the block ends without an error.

    size: the bytes that the file needs, for the error message. exclusive: FileExistsError if the file exists, instead
    of replacing it. sync: wait until it is on the disk, so that it is complete even after a power failure.
    Raises an OSError that names the file, the reason and the size if it cannot be written.
    """
    part = part_of(file)
    try:
        with open(part, "x+b") as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        if exclusive and os.path.lexists(file):
            raise FileExistsError(errno.EEXIST, "was written by another process in the meantime", str(file))
        os.replace(part, file)
        if sync:
            _sync_folder(file.parent)
    except FileExistsError:
        raise
    except (OSError, RuntimeError) as error:  # PyTorch raises a RuntimeError when the disk is full
        raise not_written(file, error, size) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def part_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `folder` when the block ends without an error, else is removed.

    Raises FileExistsError if that name is taken.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(folder.parent)
    part = part_of(folder)
    part.mkdir()
    try:
        yield part
        if os.path.lexists(folder):  # a rename would replace an empty folder
            raise FileExistsError(errno.EEXIST, "was written by another process in the meantime", str(folder))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_file(file: Path, content: bytes | str, exclusive: bool = False, sync: bool = True) -> Path:
    """Writes a whole file; text in UTF-8. The arguments and errors are those of `writing`. Returns the file."""
    content = content.encode() if isinstance(content, str) else content
    with writing(file, len(content), exclusive, sync) as stream:
        stream.write(content)
    return file


def append(file: Path, text: str) -> None:
    """Adds text to a file. The errors are those of `writing`; then a part of the text may be there."""
    try:
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise not_written(file, error, len(text)) from error


def not_written(file: Path, error: Exception, size: int) -> OSError:
    """An OSError for a file of `size` bytes, with the reason and the free space."""
    cause = error
    while cause is not None and not getattr(cause, "strerror", None):
        cause = cause.__context__  # PyTorch raises its own error after the system's
    reason = cause.strerror if cause else " ".join(str(error).split())
    space = f"it needs {_bytes(size)}"
    if file.parent.is_dir():
        space += f", and {_bytes(shutil.disk_usage(file.parent).free)} are free"
    return OSError(getattr(error, "errno", None) or errno.EIO, f"was not written ({reason}): {space}", str(file))


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


@contextmanager
def own_stem(folder: Path, stem: str) -> Iterator[str]:
    """How all names of a process's files begin: the first of stem, stem-2, … that no file and no other process has."""
    for number in count(1):
        own = stem if number == 1 else f"{stem}-{number}"
        claim = folder / f".{own}.{'0' * 16}.part"  # a part, so that the claim of a process that died is cleared
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            if not any(file.name.startswith(f"{own}_") for file in folder.iterdir()):
                yield own
                return
        finally:
            claim.unlink(missing_ok=True)


def part_of(file: Path) -> Path:
    """A new name for the incomplete file."""
    return file.with_name(f".{file.name}.{secrets.token_hex(8)}.part")


def clear_parts(folder: Path) -> None:
    """Removes the parts in a folder, files and folders, that are older than a day. Other files are kept."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):  # removed in the meantime, or another user's
            if PART.fullmatch(part.name) and part.lstat().st_mtime < time.time() - DAY:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def _sync_folder(folder: Path) -> None:
    """Waits until the renames are on the disk, where the system can; Windows cannot open folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
