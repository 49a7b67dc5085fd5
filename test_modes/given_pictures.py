"""The real pictures that interpolate, inpaint and edit start from, and evaluate compares with."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets import Reading, picture_shape
from datasets.folder import AS_EVER, open_picture
from datasets.pixels import fit_picture
from evaluation.real_pictures import load
from files.errors import ConfigError
from runs.config import load_recipe


def real_data(args: Namespace, recipe: dict) -> tuple[dict, str]:
    """(data, split) that the flags choose, for `load`: by default those of the training."""
    data = load_recipe(args.config, args.data_name) if args.data_name else recipe
    shape = {key: recipe[key] for key in ("image_size", "image_channel")}
    return data | shape | {"data_path": args.data_path or data["data_path"]}, args.split or data["split"]


def given_pictures(args: Namespace, recipe: dict, count: int) -> Tensor:
    """uint8 (N, C, H, W): --image_files, or of the data set --image_indices, or `count` that the seed draws."""
    size, channels, indices = recipe["image_size"], recipe["image_channel"], args.image_indices
    if args.image_files:
        if indices or args.data_name or args.data_path or args.split:
            raise ConfigError("--image_files cannot be combined with another choice of pictures")
        pictures = [opened(file, "--image_files", Reading.of(recipe)) for file in args.image_files]
        return torch.from_numpy(np.stack([fit_picture(picture, size, channels) for picture in pictures]))
    images = load(*real_data(args, recipe))
    if outside := [i for i in indices or [] if not 0 <= i < len(images)]:
        raise ConfigError(f"--image_indices {outside[0]}: there are {len(images)} pictures, numbered from 0")
    if not indices and len(images) < count:
        raise ConfigError(f"there are only {len(images)}, not {count} pictures: choose some with --image_indices")
    indices = indices or np.random.default_rng(args.seed).choice(len(images), count, replace=False)
    return images[torch.as_tensor(indices)]


def samples_in(files: list[Path], least: int, flag: str, recipe: dict) -> Tensor:
    """uint8 (N, C, H, W): pictures of the recipe's size. ConfigError for another, and for too few: none is resized."""
    size, pictures = recipe["image_size"], []
    _, H, W = picture_shape(size, 1)
    for file in tqdm(files, desc="reading", leave=False, delay=2):
        picture = opened(file, flag, Reading.of(recipe))
        if picture.size != (W, H):
            has = f"it has {picture.width}x{picture.height} pixels, and the data {W}x{H}"
            raise ConfigError(f"{flag} {file}: {has}: resize it yourself, since the way changes the distances")
        pictures.append(fit_picture(picture, size, recipe["image_channel"]))
    if len(pictures) < least:
        raise ConfigError(f"{flag} {files[0].parent}: {len(pictures)} pictures are fewer than the {least} needed")
    return torch.from_numpy(np.stack(pictures))


def opened(file: Path, flag: str, reading: Reading = AS_EVER) -> Image.Image:
    """The picture in a file that a flag names. ConfigError if it cannot be opened."""
    try:
        return open_picture(file, reading)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises all of these
        raise ConfigError(f"{flag} {file}: {getattr(error, 'strerror', None) or error}") from error
