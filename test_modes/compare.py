"""Draws a table of samples over samplers and steps."""

import time
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from diffusion import SampleSpec
from test_modes.names import picture_path
from utils.checkpoint import Run
from utils.pictures import grid, grid_columns, save_comparison

FLAGS = ()


def run(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """One table of samples, methods down and steps across, all from the same noise; with the seconds per image."""
    count, cells = args.sample_num or 16, {}
    trained.sample(count, SampleSpec("DDIM", min(3, trained.recipe["timestep_num"]), 0.0), args.seed, args.batch_size)
    for spec in tqdm(specs, desc="compare", leave=False):  # after a warm-up, which the first sampler would pay for
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size)
        seconds = (time.monotonic() - began) / count
        cells[spec] = grid(x, grid_columns(count)), seconds
    file, device = picture_path(args, "compare"), trained.device
    return save_comparison(cells, file, images=count, device=device, precision=args.precision)
