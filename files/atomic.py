"""Files that exist completely or not at all: written beside their place, synced, and renamed when complete.

An incomplete file is named .NAME.<16 hex digits>.part and locked by its writer. A part that nobody has locked was left
by a process that died, and the next one removes it.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no file locks of this kind: there parts are never removed
    fcntl = None

PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
CLAIM = "0" * 16  # in place of the random digits


class Part:
    """An incomplete file that belongs beside `file`, with a `stream` to write to. A context manager that removes it.

    Raises OSError if it cannot be created.
    """

    def __init__(self, file: Path):
        self.path = part_of(file)
        self.stream = _created(self.path)
        self._lock = os.dup(self.stream.fileno()) if fcntl else None  # keeps the lock until the file has its name

    def complete(self, file: Path, exclusive: bool = False, sync: bool = True) -> None:
        """Renames it. exclusive: FileExistsError if the file exists, instead of replacing it.

        sync: wait until it is on the disk, so that it is complete even after a power failure.
        """
        self.stream.flush()
        if sync:
            os.fsync(self.stream.fileno())
        self.stream.close()  # Windows cannot rename an open file
        (_rename_new if exclusive else os.replace)(self.path, file)
        if sync:
            _sync_folder(file.parent)

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, *_) -> None:
        try:
            self.stream.close()
        except OSError:  # what was left in its buffer does not fit on the disk
            pass
        finally:
            self.path.unlink(missing_ok=True)
            if fcntl:
                os.close(self._lock)


@contextmanager
def writing(file: Path, size: int, exclusive: bool = False, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream to write `file` to, which takes its name when the block ends without an error.

    size: the bytes that the file needs, for the error message. exclusive, sync: see `Part.complete`.
    Raises an OSError that names the file, the reason and the size if it cannot be written.
    """
    try:
        with Part(file) as part:
            yield part.stream
            part.complete(file, exclusive, sync)
    except FileExistsError:
        raise
    except (OSError, RuntimeError) as error:  # PyTorch raises a RuntimeError when the disk is full
        raise not_written(file, error, size) from error


@contextmanager
def part_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the name `folder` when the block ends without an error, else is removed.

    Raises FileExistsError if that name is taken.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(folder.parent)
    with ExitStack() as until_renamed:
        while True:
            part = part_of(folder)
            part.mkdir()
            with suppress(FileNotFoundError, BlockingIOError):
                until_renamed.enter_context(locked(part))
                if part.exists():  # else `clear_parts` of another process was faster
                    break
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


@contextmanager
def own_stem(folder: Path, stem: str) -> Iterator[str]:
    """The beginning of the names of a process's files in a folder: stem, or else stem-2, stem-3, …

    It is the first that no file has (followed by "_") and that no other process uses at the same time.
    """
    for number in count(1):
        own = stem if number == 1 else f"{stem}-{number}"
        claim = folder / f".{own}.{CLAIM}.part"
        try:
            stream = _created(claim)
        except FileExistsError:
            continue
        with stream:
            if not fcntl:  # there is no lock to keep, and Windows cannot remove an open file
                stream.close()
            try:
                if not any(file.name.startswith(f"{own}_") for file in folder.iterdir()):
                    yield own
                    return
            finally:
                claim.unlink(missing_ok=True)


def _bytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def part_of(file: Path) -> Path:
    """A new name for the incomplete file."""
    return file.with_name(f".{file.name}.{secrets.token_hex(8)}.part")


def clear_parts(folder: Path) -> None:
    """Removes the parts in a folder, files and folders, that processes left which died. Other files are kept."""
    for part in folder.glob(".*.part") if fcntl else ():
        if not PART.fullmatch(part.name) or part.is_symlink():
            continue
        try:
            descriptor = os.open(part, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:  # removed in the meantime, or another user's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        except OSError:  # its writer is alive
            pass
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder during the block, except on Windows. BlockingIOError if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY) if fcntl else None  # Windows cannot open folders
    try:
        if fcntl:
            _lock(descriptor)
        yield
    finally:
        if fcntl:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    """Locks an open file or folder until its last descriptor is closed. BlockingIOError if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def _created(part: Path) -> BinaryIO:
    """A new file, locked. FileExistsError if it exists."""
    while True:
        stream = open(part, "xb")
        try:
            if not fcntl:
                return stream
            _lock(stream.fileno())
            if os.fstat(stream.fileno()).st_nlink:  # else `clear_parts` of another process has just removed it
                return stream
        except BlockingIOError:  # it is about to
            pass
        stream.close()


def _rename_new(part: Path, file: Path) -> None:
    """Renames, but never over another file: FileExistsError."""
    try:
        os.link(part, file)  # unlike a rename it fails if the file exists
    except FileExistsError:
        raise
    except OSError as error:  # a file system without links
        if os.path.lexists(file):
            raise FileExistsError(error.errno, "exists", str(file)) from error
        os.replace(part, file)


def _sync_folder(folder: Path) -> None:
    """Waits until the renames are on the disk."""
    if fcntl:  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:  # not every file system can
            pass
        finally:
            os.close(descriptor)
