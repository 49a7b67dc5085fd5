"""Changes pictures: into the noise, and back."""

from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from datasets import normalize
from diffusion import SampleSpec, edit
from diffusion.interpolation import partial_spec
from test_modes.flags import depths
from test_modes.given_pictures import given_pictures
from test_modes.job import Job
from utils.pictures import check_size, grid, save_film, save_table

PICTURES = 8  # random ones, unless the flags choose others


def run(job: Job) -> list[Path]:
    """A row per depth below the pictures, `sample_num` edits of each picture beside each other."""
    args, trained = job.args, job.trained
    T, edits, files = trained.recipe["timestep_num"], args.sample_num or 1, []
    rows = depths(args, T) or [-(-T * tenths // 10) for tenths in (2, 4, 6, 8)]
    asked = list(product(job.specs, args.edit_mode or ["sdedit"]))
    for spec, mode in asked:  # all, before the first is used
        partial_spec(spec, max(rows), T, inverted=mode == "ddim")
    pictures = given_pictures(args, trained.recipe, PICTURES)
    columns = edits * len(pictures)
    check_size(columns * (1 + len(rows)), columns, pictures.shape[-2:], args.animate)
    x_start = normalize(pictures.repeat_interleave(edits, 0)).to(trained.device)
    for spec, mode in asked:
        states = [edit_states(job, x_start, spec, depth, mode) for depth in rows]
        file = job.path(spec, "edit" if mode == "sdedit" else f"{mode}_edit")
        cells = [[grid(x, len(x_start))] for x in (x_start, *(parts[-1] for parts in states))]
        labels = ["picture", *(f"{depth} of {T}" for depth in rows)]
        files.append(save_table(cells, labels, [""], file))
        ends = range(-max(map(len, states)), 0)  # the films of all depths end together
        film = (torch.cat([x_start.cpu(), *(parts[max(end, -len(parts))] for parts in states)]) for end in ends)
        files += save_film((grid(x, len(x_start)) for x in film), file, args.animate)
    return files


def edit_states(job: Job, x_start: Tensor, spec: SampleSpec, depth: int, mode: str) -> list[Tensor]:
    """The states of one depth, of pictures (N, C, H, W). Picture i has the noise of sample i, at all depths."""
    diffusion, network = job.trained.diffusion, job.trained.network
    calls = -(-spec.steps * depth // diffusion.timestep_num)
    return job.states(
        len(x_start), calls, f"{mode} {depth}",
        lambda x_T, noise, at: edit(diffusion, network, x_T, x_start[at[0] : at[-1] + 1], spec, depth, noise, mode),
    )  # fmt: skip
