"""Draws a table of samples over samplers and steps, or over guidance."""

import csv
import io
import time
from argparse import Namespace
from pathlib import Path

import torch
from tqdm import tqdm

from diffusion import SampleSpec
from files.atomic import write_file
from runs.run import Run
from test_modes.labels import described, names_of
from test_modes.names import picture_path
from utils.pictures import grid, grid_columns, save_comparison, save_table

FLAGS = ("labels", "guidance")


def run(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """One table of samples, methods down and steps across, all from the same noise; with the seconds per image.

    Of several --guidance one table for each sampler, with classes down and guidance across.
    """
    names = names_of(args, trained.recipe)
    count, cells = args.sample_num or (len(names) * max(1, 40 // len(names)) if names else 16), {}
    columns = -(-count // len(names)) if names else grid_columns(count)
    trained.sample(count, SampleSpec("DDIM", min(3, trained.recipe["timestep_num"]), 0.0), args.seed, args.batch_size)
    if len(args.guidance) > 1:
        return [file for spec in specs for file in over_guidance(args, trained, spec, count, names)]
    for spec in tqdm(specs, desc="compare", leave=False):  # after a warm-up, which the first sampler would pay for
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size, labels=args.labels, guidance=args.guidance[0])
        seconds = (time.monotonic() - began) / count
        by_class = torch.cat([x[i :: len(names)] for i in range(len(names))]) if names else x
        cells[spec] = grid(by_class, columns), seconds
    file, device = picture_path(args, described("compare", args.guidance[0])), trained.device
    return save_comparison(cells, file, images=count, device=device, precision=args.precision)


def over_guidance(args: Namespace, trained: Run, spec: SampleSpec, count: int, names: list[str]) -> list[Path]:
    """A table of one sampler, classes down and guidance across, all from the same noise; and its seconds as CSV."""
    table, text = [], io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["sample_info", "guidance", "seconds_per_image", "images", "device", "precision"])
    for weight in tqdm(args.guidance, desc=f"compare {spec}", leave=False):
        began = time.monotonic()
        x = trained.sample(count, spec, args.seed, args.batch_size, labels=args.labels, guidance=weight)
        seconds = (time.monotonic() - began) / count
        table.append([grid(x[i :: len(names)], -(-count // len(names))) for i in range(min(count, len(names)))])
        writer.writerow([spec, f"{weight:g}", f"{seconds:.6f}", count, trained.device, args.precision])
    file, rows = picture_path(args, f"{spec}_guidance"), list(zip(*table, strict=True))
    save_table(rows, names[: len(rows)], [f"guidance {weight:g}" for weight in args.guidance], file)
    return [file, write_file(file.with_suffix(".csv"), text.getvalue())]
