"""The error of all loaders, their warnings, and a download that reports what to do if it fails."""

import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm


class DataError(Exception):
    """A one-line message for the user: which data are missing or damaged, where, and what to do."""


def warn(message: str) -> None:
    """Prints one line on stderr, above the progress bars; the name of a file may contain a line break."""
    tqdm.write(message.replace("\n", "\\n"), file=sys.stderr)


def fetch(name: str, data_path: Path, wanted: str, download: bool, get: Callable[[], object]) -> None:
    """Downloads the data set `name` by calling `get`.

    wanted: the files that the user can put into data_path instead, for the error message.
    Raises DataError if `download` is false or the download fails.
    """
    where = f"{name}: no data in {data_path}"
    if not download:
        raise DataError(f"{where}; put {wanted} there")
    try:
        get()
    except Exception as error:  # no network, a full disk, missing permissions: many types
        reason = " ".join(str(error).split())
        raise DataError(f"{where} and the download failed ({reason}); put {wanted} there") from error
