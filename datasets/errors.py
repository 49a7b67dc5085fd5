"""The error of all loaders, their warnings, and a download that reports what to do if it fails."""

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from datasets.registry import Found


class DataError(Exception):
    """A one-line message for the user: which data are missing or damaged, where, and what to do."""


def warn(message: str) -> None:
    """Prints one line on stderr, above the progress bars; the name of a file may contain a line break."""
    tqdm.write(message.replace("\n", "\\n"), file=sys.stderr)


def find_or_fetch(
    name: str, data_path: Path, wanted: str, find: Callable[[], Found | None], download: bool, source: str
) -> Found:
    """What `find` returns, which is None or empty where nothing is; then torchvision downloads the data set first.

    source: its class in torchvision.datasets. wanted: the files that the user can put into data_path instead, for the
    error message.
    Raises DataError if nothing is found and `download` is false, or the download fails or leaves nothing.
    """
    found, reason = find(), ""
    if download and (found is None or not len(found)):
        try:
            import torchvision.datasets  # here because it takes as long as PyTorch itself

            getattr(torchvision.datasets, source)(data_path, download=True)
        except Exception as error:  # no network, a full disk, missing permissions: many types
            reason = f" and the download failed ({' '.join(str(error).split())})"
        found = find()
    if found is None or not len(found):
        raise DataError(f"{name}: no data in {data_path}{reason}; put {wanted} there")
    return found
