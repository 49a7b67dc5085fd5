"""Draws pictures, and shows how they develop from noise."""

from argparse import ArgumentParser, Namespace
from collections import deque
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import to_uint8
from diffusion import SampleSpec, sample_progressive
from runs.run import Run, in_batches
from test_modes.labels import described, names_of
from test_modes.names import picture_path
from test_modes.sample_dir import SampleDir, identity_of
from utils.device import rank_and_world
from utils.picture_size import check_size
from utils.pictures import ProgressPicture, grid_columns, save_by_class

FLAGS = ("sample_dir", "animate", "labels", "guidance")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("random_gen").add_argument
    add("--sample_dir", type=Path, metavar="D", help="also save each sample there; can be continued")
    add("--animate", choices=("gif", "webp"), help="also save the progress as a film")


def run(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """The samples of each sampler as a grid, and how the first of them develop from noise.

    With labels a row of the grid is a class, of ten samples unless --sample_num says otherwise.
    """
    if args.sample_dir:
        return fill_sample_dir(args, trained, specs[0])
    files, names, count = [], names_of(args, trained.recipe), trained.recipe["sample_num"]
    count = args.sample_num or (len(names) * min(10, max(1, count // len(names))) if names else count)
    for spec, weight in product(specs, args.guidance):
        batches = in_batches(count, args.batch_size)
        parts = [draw_batch(args, trained, spec, weight, indices, files) for indices in batches]
        file = picture_path(args, f"{described(spec, weight)}_final")
        files.append(save_by_class(torch.cat(parts), names, file))
    return files


def fill_sample_dir(args: Namespace, trained: Run, spec: SampleSpec) -> list[Path]:
    """Each sample that --sample_dir lacks, as its own file. The pictures show the first batch, when it is drawn."""
    files, count, (rank, world) = [], args.sample_num or trained.recipe["sample_num"], rank_and_world()
    (weight,) = args.guidance
    identity = identity_of(trained, spec, args.seed, args.precision, args.labels, weight)
    folder = SampleDir(args.sample_dir, identity, count)
    batches = [b for b in in_batches(count, args.batch_size, rank, world) if not all(map(folder.has, b))]
    print(f"process {rank} of {world}: {sum(map(len, batches)):,} samples to draw into {args.sample_dir}")
    for indices in tqdm(batches, desc="batches", leave=False):
        pixels = draw_batch(args, trained, spec, weight, indices, files)
        if indices[0] == 0:
            file = picture_path(args, f"{described(spec, weight)}_final")
            files.append(save_by_class(pixels, names_of(args, trained.recipe), file))
        folder.save(indices, pixels)  # last, so that a first batch in the folder has its pictures too
    return [*files, args.sample_dir]


def draw_batch(
    args: Namespace, trained: Run, spec: SampleSpec, weight: float, indices: range, files: list[Path]
) -> torch.Tensor:
    """uint8 (B, C, S, S) on the CPU. Of the first batch it saves the progress too, and adds its files to `files`."""
    x_T, noise = trained.noise(indices, args.seed)
    network = trained.labelled(indices, args.labels, weight)
    frames = sample_progressive(trained.diffusion, network, x_T, spec, noise)
    frames = tqdm(frames, total=spec.steps, desc=f"{spec}, samples {indices[0]} to {indices[-1]}", leave=False)
    if indices[0] == 0:
        columns = grid_columns(len(indices))
        check_size(len(indices), columns, x_T.shape[-2:], args.animate)
        progress = ProgressPicture(spec.steps, columns, film=bool(args.animate))
        x = progress.watch(x_T, frames)
        files += progress.save(picture_path(args, f"{described(spec, weight)}_progress"), args.animate)
    else:
        x = deque(frames, maxlen=1).pop().sample
    return to_uint8(x).cpu()
