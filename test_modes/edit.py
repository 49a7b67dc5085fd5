"""Changes pictures: into the noise, and back."""

from argparse import ArgumentParser
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from datasets import normalize
from diffusion import EDIT_MODES, SampleSpec, edit
from files.errors import ConfigError
from runs.run import in_batches
from test_modes import given_pictures
from test_modes.interpolate import depths
from test_modes.job import Job
from utils.picture_size import check_size
from utils.pictures import film_states, grid, save_film, save_table

FLAGS = ("edit_mode", "diffusion_step", "animate", *given_pictures.FLAGS)
PICTURES = 8  # random ones, unless the flags choose others


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("edit").add_argument
    add("--edit_mode", nargs="+", choices=EDIT_MODES, help="add noise (sdedit, the default), or invert DDIM")


def run(job: Job) -> list[Path]:
    """A row per depth below the pictures, `sample_num` edits of each picture beside each other."""
    args, trained = job.args, job.trained
    T, edits, files = trained.recipe["timestep_num"], args.sample_num or 1, []
    rows = depths(args, T) or [-(-T * tenths // 10) for tenths in (2, 4, 6, 8)]
    pictures = given_pictures.given_pictures(args, trained.recipe, PICTURES)
    columns = edits * len(pictures)
    check_size(columns * (1 + len(rows)), columns, pictures.shape[-2:], args.animate)
    x_start = normalize(torch.from_numpy(pictures.repeat(edits, 0))).to(trained.device)
    for spec, mode in product(job.specs, args.edit_mode or ["sdedit"]):
        states = [edit_states(job, x_start, spec, depth, mode) for depth in rows]
        file = job.path(spec, "edit" if mode == "sdedit" else f"{mode}_edit")
        cells = [[grid(x, len(x_start))] for x in (x_start, *(parts[-1] for parts in states))]
        labels = ["picture", *(f"{depth} of {T}" for depth in rows)]
        files.append(save_table(cells, labels, [""], file))
        longest = max(map(len, states))
        states = [[parts[0]] * (longest - len(parts)) + parts for parts in states]  # they end together
        film = [torch.cat([x_start.cpu(), *parts]) for parts in zip(*states, strict=True)]
        files += save_film(film, len(x_start), file, args.animate)
    return files


def edit_states(job: Job, x_start: Tensor, spec: SampleSpec, depth: int, mode: str) -> list[Tensor]:
    """The `film_states` of one depth, of pictures (N, C, H, W). Picture i has the noise of sample i, at all depths."""
    args, trained = job.args, job.trained
    batches, steps = [], -(-spec.steps * depth // trained.recipe["timestep_num"])
    for indices in tqdm(list(in_batches(len(x_start), args.batch_size)), desc=f"{mode} {depth}", leave=False):
        noise, generator = trained.noise(indices, args.seed)
        given = trained.diffusion, trained.network, noise, x_start[indices[0] : indices[-1] + 1]
        try:
            frames = edit(*given, spec, depth, generator, mode)
        except ValueError as error:
            raise ConfigError(f"--edit_mode and --sample_info: {error}") from error
        batches.append(film_states(frames, steps, bool(args.animate)))
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]
