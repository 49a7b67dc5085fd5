"""Draws pictures, and shows how they develop from noise."""

from collections import Counter, deque
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import picture_shape, to_uint8
from diffusion import SampleSpec, sample_progressive
from runs.run import in_batches
from test_modes.job import Job
from test_modes.progress import save_progress
from test_modes.sample_dir import SampleDir, identity_of
from utils.device import rank_and_world
from utils.pictures import check_size, grid_columns, in_rows, save_by_class


def run(job: Job) -> list[Path]:
    """The samples of each sampler as a grid, by default ten of each class, and how the first develop from noise."""
    if job.args.sample_dir:
        return fill_sample_dir(job, job.args.sample_num or job.trained.recipe["sample_num"])
    args, names, files, count = job.args, job.names, [], job.trained.recipe["sample_num"]
    count = args.sample_num or (len(names) * min(10, max(1, count // len(names))) if names else count)
    check_pictures(job, count)
    for spec, weight in product(job.specs, job.guidance):
        drawn = [draw_batch(job, spec, weight, indices) for indices in in_batches(count, args.batch_size)]
        pixels = torch.cat([pixels for pixels, _ in drawn])
        rows, of_row = job.rows(count)
        files += [*drawn[0][1], save_by_class(pixels, rows, job.path(spec, "final", weight), of_row)]
    return files


def check_pictures(job: Job, count: int) -> None:
    """ConfigError if no file holds the picture of `count` samples, or the film of the first batch."""
    size, first = picture_shape(job.trained.recipe["image_size"], 1)[1:], min(count, job.args.batch_size)
    sizes = Counter(job.rows(count)[1])
    if sizes and in_rows(count, len(sizes)):
        columns = max(sizes.values())
        check_size(len(sizes) * columns, columns, size)
    else:
        check_size(count, grid_columns(count), size)
    check_size(first, grid_columns(first), size, job.args.animate)


def fill_sample_dir(job: Job, count: int) -> list[Path]:
    """Each sample that --sample_dir lacks, as its own file. The pictures show the first batch, when it is drawn."""
    args, trained, (spec,), (weight,) = job.args, job.trained, job.specs, job.guidance
    files, (rank, world) = [], rank_and_world()
    check_pictures(job, min(count, args.batch_size))
    identity = identity_of(trained, spec, args.seed, job.precision, job.labels, weight)
    folder = SampleDir(args.sample_dir, identity, count)
    missing = {b: sum(not folder.has(i) for i in b) for b in in_batches(count, args.batch_size, rank, world)}
    batches = [b for b in missing if missing[b]]
    print(f"process {rank} of {world}: {sum(missing.values()):,} samples to draw into {args.sample_dir}")
    for indices in tqdm(batches, desc="batches", leave=False):
        pixels, progress = draw_batch(job, spec, weight, indices)
        if progress:
            rows, of_row = job.rows(len(pixels))
            files += [*progress, save_by_class(pixels, rows, job.path(spec, "final", weight), of_row)]
        folder.save(indices, pixels)  # last, so that a first batch in the folder has its pictures too
    return [*files, args.sample_dir]


def draw_batch(job: Job, spec: SampleSpec, weight: float, indices: range) -> tuple[torch.Tensor, list[Path]]:
    """(pixels, files): uint8 (B, C, H, W) on the CPU, and of the first batch the pictures of its progress."""
    trained, files = job.trained, []
    x_T, noise = trained.noise(indices, job.args.seed)
    network = trained.labelled(indices, job.labels, weight)
    frames = sample_progressive(trained.diffusion, network, x_T, spec, noise)
    frames = tqdm(frames, total=spec.steps, desc=f"{spec}, samples {indices[0]} to {indices[-1]}", leave=False)
    if indices[0] == 0:
        file, columns = job.path(spec, "progress", weight), grid_columns(len(indices))
        x, files = save_progress(x_T, frames, spec.steps, columns, file, job.args.animate)
    else:
        x = deque(frames, maxlen=1).pop().sample
    return to_uint8(x).cpu(), files
