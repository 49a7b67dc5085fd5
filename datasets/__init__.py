"""Data sets as uint8 arrays of pictures, one small loader each. Independent of networks and of the diffusion.

A loader takes (data_path, split, download) and returns the pictures in their original size: a uint8 array (N, H, W) or
(N, H, W, 3) if the data set stores them as an array, else the list of picture files.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np

from datasets.cache import fit_array, fit_files
from datasets.errors import DataError
from datasets.pixels import normalize, to_uint8
from datasets.registry import LOADERS

__all__ = [
    "LOADERS", "OTHER_SPLIT", "SPLITS", "DataError", "find_images", "fit_images", "load_images", "normalize",
    "to_uint8",
]  # fmt: skip

SPLITS = ("train", "test", "all")
OTHER_SPLIT = {"train": "test", "test": "train"}

for module in iter_modules(__path__):  # importing a module registers its loaders in LOADERS
    import_module(f"{__name__}.{module.name}")


def find_images(dataset: str, data_path: str | Path, split: str, download: bool = True) -> np.ndarray | list[Path]:
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
    dataset: str, data_path: str | Path, split: str, image_size: int, image_channel: int, download: bool = True
) -> np.ndarray:
    """The pictures of one split as uint8 (N, image_channel, image_size, image_size), RGB or grey.

    Resizes the shorter side to image_size pixels and crops the middle. Picture files are decoded once, into a cache in
    data_path, and returned as a memory-mapped array. The other arguments and the errors are those of `find_images`.
    """
    return fit_images(find_images(dataset, data_path, split, download), data_path, split, image_size, image_channel)


def fit_images(
    found: np.ndarray | list[Path], data_path: str | Path, split: str, image_size: int, image_channel: int
) -> np.ndarray:
    """What `find_images` found, as `load_images` returns it."""
    if isinstance(found, np.ndarray):
        return fit_array(found, image_size, image_channel)
    return fit_files(found, Path(data_path), split, image_size, image_channel)
