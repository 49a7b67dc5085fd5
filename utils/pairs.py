"""Which pictures to interpolate between."""

from pathlib import Path

import numpy as np
from PIL import Image

from datasets import load_images
from datasets.folder import open_picture
from datasets.pixels import fit_picture
from utils.config import load_recipe
from utils.errors import ConfigError
from utils.images import grid_columns


def choose_pairs(args, recipe: dict) -> np.ndarray:
    """uint8 (2, P, C, S, S): the first and the second picture of each pair, as the arguments say.

    Two files, or numbers of pictures in a data set; else as many pairs as a square of sample_num is wide,
    drawn by the seed. The data are the training's, or those of data_name, data_path and split.
    """
    size, channel = recipe["image_size"], recipe["image_channel"]
    if args.image_files:
        if args.image_indices or args.data_name or args.data_path or args.split:
            raise ConfigError("--image_files takes no other choice of pictures beside it")
        pictures = [_open(file) for file in args.image_files]
        if pictures[0].size != pictures[1].size:
            sizes = " and ".join(f"{picture.width}x{picture.height}" for picture in pictures)
            raise ConfigError(f"--image_files: a pair must be of one size, not {sizes}")
        return np.stack([fit_picture(picture, size, channel) for picture in pictures])[:, None]
    source = load_recipe(args.config, args.data_name) if args.data_name else recipe
    data_path = args.data_path or source["data_path"]
    images = load_images(source["dataset"], data_path, args.split or source["split"], size, channel)
    chosen = args.image_indices
    if chosen is None:
        pairs = grid_columns(args.sample_num or recipe["sample_num"])
        if len(images) < 2 * pairs:
            raise ConfigError(
                f"{pairs} pairs take {2 * pairs} pictures, and {data_path} has {len(images)}: lower --sample_num"
            )
        chosen = np.random.default_rng(args.seed).choice(len(images), 2 * pairs, replace=False).reshape(2, pairs)
    else:
        if len(chosen) % 2:
            raise ConfigError(f"--image_indices takes pairs, and {len(chosen)} is an odd number of pictures")
        if outside := [i for i in chosen if not 0 <= i < len(images)]:
            raise ConfigError(f"--image_indices {outside[0]}: {data_path} has {len(images)} pictures, from 0 on")
        chosen = np.array(chosen).reshape(-1, 2).T
    return np.array(images[chosen.ravel()]).reshape(2, -1, channel, size, size)


def _open(file: Path) -> Image.Image:
    try:
        return open_picture(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow has many kinds
        raise ConfigError(f"--image_files {file}: {getattr(error, 'strerror', None) or error}") from error
