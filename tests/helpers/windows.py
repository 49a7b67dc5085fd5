"""This machine as if it were Windows, where a file that is open can be neither renamed nor replaced nor removed."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import training.resume

MISSING = ("fork", "mkfifo", "statvfs")  # in the module os


def held():
    """The real paths of the files that this process has open or mapped into its memory."""
    descriptors = [Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return {os.path.realpath(link) for link in descriptors} | {parts[5] for parts in maps if len(parts) == 6}


class NoLock:
    def __init__(self, file):
        pass

    def acquire(self, timeout):
        return nullcontext()


def as_on_windows(patch):
    """patch: a pytest.MonkeyPatch."""

    def guarded(name, paths):
        real = getattr(os, name)

        def call(*args, dir_fd=None, **keywords):
            for path in args[:paths]:
                path, busy = os.path.realpath(path), held()
                if path in busy or any(other.startswith(path + os.sep) for other in busy):  # in a folder
                    raise PermissionError(13, f"[WinError 32] {name} of a file that is open", path)
            return real(*args, **keywords)

        patch.setattr(os, name, call)

    patch.setattr(shutil, "_use_fd_functions", False)  # rmtree goes by names there
    for name, paths in (("replace", 2), ("rename", 2), ("unlink", 1), ("remove", 1)):
        guarded(name, paths)
    for name in MISSING:
        patch.delattr(os, name, raising=False)
    opened = os.open

    def open_file(path, *args, **keywords):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **keywords)

    patch.setattr(os, "open", open_file)
    patch.setattr(training.resume, "FileLock", NoLock)  # it has its own for Windows
