"""Fills a hole in pictures."""

from argparse import ArgumentParser, Namespace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datasets import normalize, picture_shape
from datasets.pixels import Size, fit_mask
from diffusion import SampleSpec, repaint
from diffusion.inpainting import way
from files.errors import ConfigError
from runs.run import in_batches
from test_modes import given_pictures
from test_modes.job import Job
from utils.command_line import number
from utils.picture_size import check_size
from utils.pictures import film_states, save_film, save_grid

FLAGS = ("mask", "mask_box", "jump_length", "resamplings", "animate", *given_pictures.FLAGS)
ROWS, FILLINGS = 8, 6  # random pictures, and how often each is filled, unless the flags say otherwise
MOST_GREY = 0.25  # the share of a mask that soft edges may take; of photographs half and more is grey


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("inpaint").add_argument
    add("--mask", type=Path, metavar="FILE", help="a picture as large as the others, white where to fill")
    add("--mask_box", type=number(0), nargs=4, metavar="N", help="fill a box of pixels: X Y W H")
    add("--jump_length", type=number(1), metavar="N", help="RePaint: jump back N timesteps; default: 40 of 1000")
    add("--resamplings", type=number(1), metavar="N", help="RePaint: take each step N times; default: 5")


def run(job: Job) -> list[Path]:
    """A row per picture: the picture, the picture with its hole, and `sample_num` fillings."""
    args, trained = job.args, job.trained
    fillings, files = args.sample_num or FILLINGS, []
    hole = hole_of(args, trained.recipe["image_size"]).to(trained.device)
    x_start = normalize(torch.from_numpy(given_pictures.given_pictures(args, trained.recipe, ROWS))).to(trained.device)
    check_size(len(x_start) * (fillings + 2), fillings + 2, x_start.shape[-2:], args.animate)
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
    jumps = args.jump_length, args.resamplings or 5
    x_T, noise = trained.noise(indices, args.seed)
    try:
        frames = repaint(trained.diffusion, trained.network, x_T, x_start, hole, spec, noise, *jumps)
    except ValueError as error:
        raise ConfigError(f"--sample_info: {error}") from error
    calls = sum(after < t for t, after in pairwise(way(spec.timesteps(trained.recipe["timestep_num"]), *jumps)))
    frames = tqdm(frames, total=calls, desc=f"{spec}, fillings {indices[0]} to {indices[-1]}", leave=False)
    return film_states(frames, calls, bool(args.animate))


def beside(x_start: Tensor, hole: Tensor, x: Tensor) -> Tensor:
    """Rows of a grid: each picture (P, C, H, W), with its hole in grey, and its fillings (P·N, C, H, W)."""
    fillings = x.unflatten(0, (len(x_start), -1))
    return torch.cat([x_start[:, None], x_start.masked_fill(hole, 0)[:, None], fillings], 1).flatten(0, 1)


def hole_of(args: Namespace, image_size: Size) -> Tensor:
    """Where to fill, bool (H, W): each pixel in which the mask or box, which is for the pictures as given, has a part.

    ConfigError if it does not fit them, or leaves nothing to fill or nothing to keep.
    """
    if (args.mask is None) == (args.mask_box is None):
        raise ConfigError("inpaint takes --mask FILE, white where to fill, or --mask_box X Y W H")
    _, H, W = picture_shape(image_size, 1)
    sizes = sorted({given_pictures.opened(file, "--image_files").size for file in args.image_files or []})
    if len(sizes) > 1:
        found = " and ".join(f"{w}x{h}" for w, h in sizes)
        raise ConfigError(f"--image_files: one mask or box is for pictures of one size, not of {found}")
    w, h = sizes[0] if sizes else (W, H)
    of = f"the pictures, which have {w}x{h} pixels"
    if args.mask:
        flag, values = f"--mask {args.mask}", mask_values(args.mask)
        if values.shape != (h, w):
            raise ConfigError(f"{flag}: it must have the size of {of}, and has {values.shape[1]}x{values.shape[0]}")
        mask, found = values >= 128, f": its values are {values.min()} to {values.max()}, and 128 or more is filled"
        if (grey := ((values >= 32) & (values < 224)).mean()) > MOST_GREY:
            raise ConfigError(f"{flag}: {grey:.0%} is neither black nor white, as in a photograph{found}")
    else:
        (x, y, across, down), mask, found = args.mask_box, np.zeros((h, w), bool), ""
        flag = f"--mask_box {x} {y} {across} {down}"
        if x + across > w or y + down > h:
            raise ConfigError(f"{flag}: it reaches beyond {of}")
        mask[y : y + down, x : x + across] = True
    hole = torch.from_numpy(fit_mask(mask, image_size))
    if not hole.any() or hole.all():
        left = "keep" if hole.any() else "fill"
        raise ConfigError(f"{flag}: at {W}x{H} pixels it leaves nothing to {left}{found}")
    return hole


def mask_values(file: Path) -> np.ndarray:
    """The grey values of a mask, uint8 (H, W). ConfigError if parts are transparent: some fill these, others paint."""
    picture = given_pictures.opened(file, "--mask")
    with Image.open(file) as image:
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise ConfigError(f"--mask {file}: it has transparent parts: save it without, white where to fill")
    return np.asarray(picture.convert("L"))
