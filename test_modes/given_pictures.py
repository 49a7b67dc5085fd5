"""The real pictures that interpolate, inpaint and edit start from."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import Reading, load_images
from datasets.folder import AS_EVER, open_picture
from datasets.pixels import Size, fit_picture
from files.errors import ConfigError
from test_modes.real_data import real_data

FLAGS = ("image_indices", "image_files", "data_name", "data_path", "split")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("interpolate, inpaint and edit: pictures").add_argument
    add("--image_indices", type=int, nargs="+", metavar="I", help="by number; interpolate: pairs, I J or I J K L …")
    add("--image_files", type=Path, nargs="+", metavar="FILE", help="files; interpolate: pairs, A B or A B C D …")


def given_pictures(args: Namespace, recipe: dict, count: int) -> np.ndarray:
    """uint8 (N, C, H, W): --image_files, or of the data set --image_indices, or `count` that the seed draws."""
    size, channels = recipe["image_size"], recipe["image_channel"]
    if args.image_files:
        if args.image_indices or args.data_name or args.data_path or args.split:
            raise ConfigError("--image_files cannot be combined with another choice of pictures")
        return from_files(args.image_files, size, channels, Reading.of(recipe))
    source, data_path, split = real_data(args, recipe)
    images = load_images(source["dataset"], data_path, split, size, channels, reading=Reading.of(source))
    if args.image_indices:
        return by_number(images, args.image_indices)
    return drawn(images, count, args.seed)


def from_files(files: list[Path], image_size: Size, image_channel: int, reading: Reading = AS_EVER) -> np.ndarray:
    """Picture files, resized and cropped as for training."""
    pictures = [opened(file, "--image_files", reading) for file in files]
    return np.stack([fit_picture(picture, image_size, image_channel) for picture in pictures])


def by_number(images: np.ndarray, indices: list[int]) -> np.ndarray:
    """Those of images (N, C, H, W) that have these numbers."""
    if outside := [i for i in indices if not 0 <= i < len(images)]:
        raise ConfigError(f"--image_indices {outside[0]}: there are {len(images)} pictures, numbered from 0")
    return np.array(images[np.array(indices)])


def drawn(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Different ones of images (N, C, H, W), drawn by the seed."""
    if len(images) < count:
        raise ConfigError(
            f"{count} pictures are too many, as there are {len(images)}: use --sample_num or --image_indices"
        )
    return np.array(images[np.random.default_rng(seed).choice(len(images), count, replace=False)])


def opened(file: Path, flag: str, reading: Reading = AS_EVER) -> Image.Image:
    """The picture in a file that a flag names. ConfigError if it cannot be opened."""
    try:
        return open_picture(file, reading)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ConfigError(f"{flag} {file}: {getattr(error, 'strerror', None) or error}") from error
