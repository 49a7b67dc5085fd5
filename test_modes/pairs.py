"""Pairs of pictures to interpolate between: uint8 (2, P, C, S, S), the first and the second picture of each pair."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.folder import open_picture
from datasets.pixels import fit_picture
from utils.errors import ConfigError


def pair_of_files(files: list[Path], image_size: int, image_channel: int) -> np.ndarray:
    """One pair from two picture files of the same size, resized and cropped as for training."""
    pictures = [_open(file) for file in files]
    if pictures[0].size != pictures[1].size:
        sizes = " and ".join(f"{picture.width}x{picture.height}" for picture in pictures)
        raise ConfigError(f"--image_files: both pictures must have the same size, not {sizes}")
    return np.stack([fit_picture(picture, image_size, image_channel) for picture in pictures])[:, None]


def chosen_pairs(images: np.ndarray, indices: list[int]) -> np.ndarray:
    """Pairs of images (N, C, S, S) by their numbers, I J K L for the pairs (I, J) and (K, L)."""
    if len(indices) % 2:
        raise ConfigError(f"--image_indices takes pairs, and {len(indices)} is an odd number of pictures")
    if outside := [i for i in indices if not 0 <= i < len(images)]:
        raise ConfigError(f"--image_indices {outside[0]}: there are {len(images)} pictures, numbered from 0")
    return _pairs(images, np.array(indices).reshape(-1, 2).T)


def random_pairs(images: np.ndarray, pairs: int, seed: int) -> np.ndarray:
    """Pairs of different images (N, C, S, S), drawn by the seed."""
    if len(images) < 2 * pairs:
        raise ConfigError(f"{pairs} pairs need {2 * pairs} pictures, and there are {len(images)}: lower --sample_num")
    return _pairs(images, np.random.default_rng(seed).choice(len(images), 2 * pairs, replace=False).reshape(2, pairs))


def _pairs(images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.array(images[numbers.ravel()]).reshape(2, -1, *images.shape[1:])


def _open(file: Path) -> Image.Image:
    try:
        return open_picture(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ConfigError(f"--image_files {file}: {getattr(error, 'strerror', None) or error}") from error
