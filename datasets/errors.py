"""What a loader says when the data are not there or not what they should be."""

from collections.abc import Callable
from pathlib import Path


class DataError(Exception):
    """One line for the user: which data, where, and what to do."""


def fetch(name: str, data_path: Path, wanted: str, download: bool, get: Callable[[], object]) -> None:
    """Runs the download `get`, or raises a DataError that says which files (`wanted`) go into data_path."""
    where = f"{name}: no data in {data_path}"
    if not download:
        raise DataError(f"{where}; put {wanted} there")
    try:
        get()
    except Exception as error:  # whatever a download meets: no network, no space, no right to write
        reason = " ".join(str(error).split())
        raise DataError(f"{where} and the download failed ({reason}); put {wanted} there") from error
