"""Data sets as uint8 arrays of pictures, one small loader each. Independent of networks and of the diffusion.

A loader takes (data_path, split, download) and returns the pictures in their original size: a uint8 array (N, H, W) or
(N, H, W, 3) if the data set stores them as an array, else the list of picture files. A second function beside it may
give their class labels, which are read only if a caller asks for them.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np

from datasets.cache import fit_images, fit_some
from datasets.errors import DataError
from datasets.folder import AS_EVER, Reading
from datasets.pixels import Size, normalize, picture_shape, to_uint8
from datasets.registry import LABEL_LOADERS, LOADERS, Found

__all__ = [
    "LOADERS", "OTHER_SPLIT", "SPLITS", "DataError", "Reading", "find_images", "find_labels", "fit_images", "fit_some",
    "load_images", "load_labelled", "normalize", "picture_shape", "to_uint8",
]  # fmt: skip

SPLITS = ("train", "test", "all")
OTHER_SPLIT = {"train": "test", "test": "train"}

for module in iter_modules(__path__):  # importing a module registers its loaders in LOADERS
    import_module(f"{__name__}.{module.name}")


def find_images(dataset: str, data_path: str | Path, split: str, download: bool = True) -> Found:
    """The pictures of one split as the loader returns them; the len() of the result is their number.

    dataset: a key of LOADERS. split: one of SPLITS.
    download: whether to download public data that are not in data_path; they are saved there.
    Raises DataError if the data are missing or damaged. It says which files belong where.
    """
    found = LOADERS[dataset](Path(data_path), split, download)
    if not len(found) or (isinstance(found, np.ndarray) and 0 in found.shape):
        raise DataError(f"{dataset}: {data_path} has no pictures of the {split} split")
    return found


def load_images(
    dataset: str, data_path: str | Path, split: str, image_size: Size, image_channel: int, download: bool = True,
    reading: Reading = AS_EVER,
) -> np.ndarray:  # fmt: skip
    """The pictures of one split as uint8 (N, C, H, W), RGB or grey. image_size: pixels a side, or (height, width).

    See `fit_picture` and `fit_images`. The other arguments and the errors are those of `find_images`.
    """
    found = find_images(dataset, data_path, split, download)
    return fit_images(found, data_path, split, image_size, image_channel, reading)[0]


def load_labelled(
    dataset: str, data_path: str | Path, split: str, image_size: Size, image_channel: int,
    classes: list[str] | None = None, download: bool = True, reading: Reading = AS_EVER,
) -> tuple[np.ndarray, np.ndarray, list[str]]:  # fmt: skip
    """What `load_images` returns, and what `find_labels` returns for it."""
    found = find_images(dataset, data_path, split, download)
    images, rows = fit_images(found, data_path, split, image_size, image_channel, reading)
    labels, classes = find_labels(dataset, found, data_path, split, classes)
    return images, labels[rows], classes


def find_labels(
    dataset: str, found: Found, data_path: str | Path, split: str, classes: list[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """(labels, classes): the number of each found picture's class, int64 (N,), and the names of the classes.

    found: what `find_images` found. classes: the names to number by, such as those of a training; None: all that the
    data set has, in its own order. A picture without a class, or of another one, has the label len(classes).
    Raises DataError if the data set has no classes, or if its labels are missing or damaged.
    """
    if dataset not in LABEL_LOADERS:
        raise DataError(f"{dataset}: this data set has no class labels")
    try:
        numbers, names = LABEL_LOADERS[dataset](Path(data_path), split, found)
        numbers = np.asarray(numbers)
        whole = numbers.dtype.kind in "iu" and numbers.shape == (len(found),)
        if not whole or not ((numbers >= -1) & (numbers < len(names))).all():
            raise ValueError(f"one number from 0 to {len(names) - 1} for each of the {len(found):,} pictures is needed")
    except (TypeError, ValueError) as error:
        raise DataError(f"{dataset}: the labels in {data_path} are damaged: {error}") from error
    classes = classes or names
    places = [classes.index(name) if name in classes else len(classes) for name in names]
    return np.array([*places, len(classes)])[numbers], classes  # the last for -1
