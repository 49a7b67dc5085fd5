"""Oxford Flowers 102: 8,189 JPEG files."""

import re
from pathlib import Path

import numpy as np

from datasets.errors import DataError, find_or_fetch, warn
from datasets.registry import data_labels, data_set

IDS = {"train": ("trnid", "valid"), "test": ("tstid",)}  # the tables of picture numbers in setid.mat


@data_set("Flower102")
def find_flower102(data_path: Path, split: str, download: bool) -> list[Path]:
    """All JPEG files in data_path and its subfolders, sorted by path.

    Of "train", the authors' validation split included, 2,040, and of "test" 6,149, by the authors' file setid.mat.
    """

    def find() -> list[Path]:
        shown = (file for file in data_path.rglob("*") if not file.name.startswith("."))
        return sorted(file for file in shown if file.suffix.lower() in (".jpg", ".jpeg"))

    wanted = "its JPEG files (image_00001.jpg … image_08189.jpg; in subfolders, too), setid.mat and imagelabels.mat"
    files = find_or_fetch("Flower102", data_path, wanted, find, download, "Flowers102")
    if len(files) != 8189:
        warn(f"Flower102: {data_path} has {len(files):,} JPEG files; the data set has 8,189")
    if split == "all":
        return files
    table = _table(data_path, "setid.mat")
    if not table.is_file():
        raise DataError(f"Flower102: {data_path} has no setid.mat, which defines the splits; add it or use split=all")
    names = {f"image_{i:05d}" for i in _numbers(table, IDS[split], "splits")}
    return [file for file in files if file.stem in names]


@data_labels("Flower102")
def flower102_labels(data_path: Path, split: str, found: list[Path]) -> tuple[np.ndarray, list[str]]:
    """The authors' numbers of the flowers, 1 to 102, by the number in the name of each file."""
    table = _table(data_path, "imagelabels.mat")
    if not table.is_file():
        raise DataError(f"Flower102: {data_path} has no imagelabels.mat, the authors' file of class labels; add it")
    labels = _numbers(table, ("labels",), "class labels")
    names = [re.fullmatch("image_([0-9]{5})", file.stem) for file in found]
    numbers = [int(name[1]) if name else 0 for name in names]
    if strange := [file for file, i in zip(found, numbers, strict=True) if not 1 <= i <= len(labels)]:
        raise DataError(f"{strange[0]} is not named as the authors name their {len(labels):,}, such as image_00001.jpg")
    return np.array([labels[i - 1] - 1 for i in numbers]), [str(i) for i in range(1, 103)]


def _table(data_path: Path, name: str) -> Path:
    """One of the authors' files: in data_path or its subfolders, or beside it, as beside the folder of the JPEGs."""
    return min(data_path.rglob(name), default=data_path.parent / name)


def _numbers(table: Path, keys: tuple[str, ...], what: str) -> list[int]:
    """The whole numbers in these entries of one of the authors' MATLAB files."""
    from scipy.io import loadmat  # SciPy is a dependency of scikit-learn

    try:
        content = loadmat(table)
        return [int(i) for key in keys for i in content[key].flatten()]
    except Exception as error:  # SciPy raises many types for a file of another kind
        raise DataError(f"{table} is not the authors' table of {what} ({error!r})") from error
