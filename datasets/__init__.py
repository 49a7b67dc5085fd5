"""Data sets as uint8 arrays of pictures. One small loader each; no networks, no timesteps in here.

A loader takes (data_path, split, download) and returns what it found, still in its own size: an array
(N, H, W) or (N, H, W, 3) of uint8 where the set comes as one, else the list of picture files.
"""

from pathlib import Path

import numpy as np

from datasets.cache import fit_array, fit_files
from datasets.cifar10 import find_cifar10
from datasets.digits import find_digits
from datasets.errors import DataError
from datasets.flower102 import find_flower102
from datasets.folder import find_folder
from datasets.mnist import find_fashion_mnist, find_mnist
from datasets.pixels import normalize, to_uint8

__all__ = ["LOADERS", "SPLITS", "DataError", "find_images", "load_images", "normalize", "to_uint8"]

LOADERS = {
    "Digits": find_digits,
    "Mnist": find_mnist,
    "Fashion_Mnist": find_fashion_mnist,
    "Cifar10": find_cifar10,
    "Flower102": find_flower102,
    "Folder": find_folder,
}
SPLITS = ("train", "test", "all")


def find_images(dataset: str, data_path: str | Path, split: str, download: bool = True) -> np.ndarray | list[Path]:
    """The pictures of one split as its loader finds them; len() of it counts them.

    dataset: a key of LOADERS. Looks in data_path first and then, if the set has a public home and
    `download` is true, fetches it there. Raises DataError, which says what belongs where.
    """
    return LOADERS[dataset](Path(data_path), split, download)


def load_images(
    dataset: str, data_path: str | Path, split: str, image_size: int, image_channel: int, download: bool = True
) -> np.ndarray:
    """One split as uint8 (N, image_channel, image_size, image_size), RGB or grey.

    The shorter side is resized, the middle cropped. Picture files are decoded once, into a cache
    beside them, which comes back memory-mapped.
    """
    found = find_images(dataset, data_path, split, download)
    if isinstance(found, np.ndarray):
        return fit_array(found, image_size, image_channel)
    return fit_files(found, Path(data_path), split, image_size, image_channel)
