"""Fills a hole in pictures."""

from argparse import ArgumentParser, Namespace
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets import normalize, picture_shape
from datasets.pixels import Size, fit_picture
from diffusion import SampleSpec, repaint
from diffusion.inpainting import levels
from files.errors import ConfigError
from runs.run import in_batches
from test_modes import given_pictures
from test_modes.job import Job
from utils.command_line import number
from utils.pictures import film_states, save_film, save_grid

FLAGS = ("mask", "mask_box", "jump_length", "resamplings", "animate", *given_pictures.FLAGS)
ROWS, FILLINGS = 8, 6  # random pictures, and how often each is filled, unless the flags say otherwise


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("inpaint").add_argument
    add("--mask", type=Path, metavar="FILE", help="a picture as large as the others, white where to fill")
    add("--mask_box", type=number(0), nargs=4, metavar="N", help="fill a box of pixels: X Y W H")
    add("--jump_length", type=number(1), metavar="N", help="RePaint: jump back N steps at a time; default: 10")
    add("--resamplings", type=number(1), metavar="N", help="RePaint: take each step N times; default: 5")


def run(job: Job) -> list[Path]:
    """A row per picture: the picture, the picture with its hole, and `sample_num` fillings."""
    args, trained = job.args, job.trained
    fillings, files = args.sample_num or FILLINGS, []
    hole = hole_of(args, trained.recipe["image_size"]).to(trained.device)
    x_start = normalize(torch.from_numpy(given_pictures.given_pictures(args, trained.recipe, ROWS))).to(trained.device)
    for spec in job.specs:
        batches = in_batches(len(x_start) * fillings, args.batch_size)
        batches = [fill(job, spec, x_start[[i // fillings for i in batch]], hole, batch) for batch in batches]
        states = [beside(x_start.cpu(), hole.cpu(), torch.cat(parts)) for parts in zip(*batches, strict=True)]
        file = job.path(spec, "inpaint")
        files.append(save_grid(states[-1], file, fillings + 2))
        files += save_film(states, fillings + 2, file, args.animate)
    return files


def fill(job: Job, spec: SampleSpec, x_start: Tensor, hole: Tensor, indices: range) -> list[Tensor]:
    """The `film_states` of filling pictures (B, C, H, W), with the noise of the samples of these numbers."""
    args, trained = job.args, job.trained
    jumps = args.jump_length or 10, args.resamplings or 5
    x_T, noise = trained.noise(indices, args.seed)
    try:
        frames = repaint(trained.diffusion, trained.network, x_T, x_start, hole, spec, noise, *jumps)
    except ValueError as error:
        raise ConfigError(f"--sample_info and --jump_length: {error}") from error
    calls = sum(after < level for level, after in pairwise(levels(spec.steps, *jumps)))
    frames = tqdm(frames, total=calls, desc=f"{spec}, fillings {indices[0]} to {indices[-1]}", leave=False)
    return film_states(frames, calls, bool(args.animate))


def beside(x_start: Tensor, hole: Tensor, x: Tensor) -> Tensor:
    """Rows of a grid: each picture (P, C, H, W), with its hole in grey, and its fillings (P·N, C, H, W)."""
    fillings = x.unflatten(0, (len(x_start), -1))
    return torch.cat([x_start[:, None], x_start.masked_fill(hole, 0)[:, None], fillings], 1).flatten(0, 1)


def hole_of(args: Namespace, image_size: Size) -> Tensor:
    """Where to fill, bool (H, W). A mask or box is for the pictures as given; it is resized and cropped as they are.

    ConfigError if it does not fit them, or leaves nothing to fill or nothing to keep.
    """
    if (args.mask is None) == (args.mask_box is None):
        raise ConfigError("inpaint takes --mask FILE, white where to fill, or --mask_box X Y W H")
    size = picture_shape(image_size, 1)[:0:-1]  # width and height
    if args.image_files:
        size = given_pictures.opened(args.image_files[0], "--image_files").size
    of = f"the pictures, which have {size[0]}x{size[1]} pixels"
    if args.mask:
        flag, mask = f"--mask {args.mask}", given_pictures.opened(args.mask, "--mask").convert("L")
        if mask.size != size:
            raise ConfigError(f"{flag}: it must have the size of {of}, and has {mask.width}x{mask.height}")
    else:
        (x, y, w, h), mask = args.mask_box, Image.new("L", size)
        flag = f"--mask_box {x} {y} {w} {h}"
        if x + w > size[0] or y + h > size[1]:
            raise ConfigError(f"{flag}: it reaches beyond {of}")
        mask.paste(255, (x, y, x + w, y + h))
    hole = torch.from_numpy(fit_picture(mask, image_size, 1)[0] >= 128)
    if not hole.any() or hole.all():
        raise ConfigError(f"{flag}: it leaves nothing to {'keep' if hole.any() else 'fill'}")
    return hole
