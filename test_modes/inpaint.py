"""Fills a hole in pictures."""

from argparse import Namespace
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import normalize, picture_shape
from datasets.pixels import Size, fit_mask
from diffusion import Frame, SampleNoise, SampleSpec, repaint
from diffusion.inpainting import check_repaint, way
from files.errors import ConfigError
from test_modes.given_pictures import given_pictures, opened
from test_modes.job import Job
from utils.pictures import check_size, grid, save_film, save_grid

MOST_GREY = 0.25  # the share of a mask that soft edges may take; of photographs half and more is grey
ROWS, FILLINGS = 8, 6  # random pictures, and how often each is filled, unless the flags say otherwise


def run(job: Job) -> list[Path]:
    """A row per picture: the picture, the picture with its hole, and `sample_num` fillings."""
    args, trained = job.args, job.trained
    fillings, files = args.sample_num or FILLINGS, []
    for spec in job.specs:  # all, before the first is used
        check_repaint(spec)
    hole = hole_of(args, trained.recipe["image_size"]).to(trained.device)
    x_start = normalize(given_pictures(args, trained.recipe, ROWS)).to(trained.device)
    check_size(len(x_start) * (fillings + 2), fillings + 2, x_start.shape[-2:], args.animate)
    for spec in job.specs:
        states = [beside(x_start.cpu(), hole.cpu(), x) for x in fill(job, spec, x_start, hole, fillings)]
        file = job.path(spec, "inpaint")
        files.append(save_grid(states[-1], file, fillings + 2))
        files += save_film((grid(x, fillings + 2) for x in states), file, args.animate)
    return files


def fill(job: Job, spec: SampleSpec, x_start: Tensor, hole: Tensor, fillings: int) -> list[Tensor]:
    """The states of filling each picture (P, C, H, W) so often: those of its fillings follow each other."""
    trained, jumps = job.trained, (job.args.jump_length, job.args.resamplings or 5)
    calls = sum(after < t for t, after in pairwise(way(spec.timesteps(trained.recipe["timestep_num"]), *jumps)))

    def frames(x_T: Tensor, noise: SampleNoise, batch: range) -> Iterator[Frame]:
        given = x_start[[i // fillings for i in batch]]
        return repaint(trained.diffusion, trained.network, x_T, given, hole, spec, noise, *jumps)

    return job.states(len(x_start) * fillings, calls, str(spec), frames)


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
    sizes = sorted({opened(file, "--image_files").size for file in args.image_files or []})
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
    picture = opened(file, "--mask")
    with Image.open(file) as image:
        if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
            raise ConfigError(f"--mask {file}: it has transparent parts: save it without, white where to fill")
    return np.asarray(picture.convert("L"))
