"""Data sets as uint8 arrays of pictures, with one small loader each. No networks, no timesteps.

A loader takes (data_path, split, download) and returns the pictures in their own size: a uint8 array (N, H, W) or
(N, H, W, 3) if the data set comes as one, else the list of picture files.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import numpy as np

from datasets.cache import fit_array, fit_files
from datasets.errors import DataError
from datasets.pixels import normalize, to_uint8
from datasets.registry import LOADERS

__all__ = ["LOADERS", "OTHER_SPLIT", "SPLITS", "DataError", "find_images", "load_images", "normalize", "to_uint8"]

SPLITS = ("train", "test", "all")
OTHER_SPLIT = {"train": "test", "test": "train"}

for module in iter_modules(__path__):  # every data set registers its loader when its module is imported
    import_module(f"{__name__}.{module.name}")


def find_images(dataset: str, data_path: str | Path, split: str, download: bool = True) -> np.ndarray | list[Path]:
    """The pictures of one split as its loader returns them; len() of it is their number.

    dataset: a key of LOADERS. The loader looks in data_path first. If the data are not there, the set has a public home
    and `download` is true, they are downloaded to it. Raises DataError, which says what belongs where.
    """
    return LOADERS[dataset](Path(data_path), split, download)


def load_images(
    dataset: str, data_path: str | Path, split: str, image_size: int, image_channel: int, download: bool = True
) -> np.ndarray:
    """One split as uint8 (N, image_channel, image_size, image_size), RGB or grey.

    The shorter side is resized and the middle cropped. Picture files are decoded once, into a cache beside them, which
    is returned as a memory-mapped array.
    """
    found = find_images(dataset, data_path, split, download)
    if isinstance(found, np.ndarray):
        return fit_array(found, image_size, image_channel)
    return fit_files(found, Path(data_path), split, image_size, image_channel)
