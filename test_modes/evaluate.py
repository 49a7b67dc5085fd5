"""Measures how close the samples are to real pictures."""

import json
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from datasets import to_uint8
from datasets.files import write_file
from diffusion import SampleSpec
from evaluation.features import extractor_for
from evaluation.numbers import Evaluation, summary
from evaluation.real_pictures import real_pictures
from test_modes import bits
from test_modes.names import picture_path
from utils.checkpoint import Run
from utils.command_line import real_data
from utils.pictures import save_grid

FLAGS = ("bits", "data_name", "data_path", "split")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("evaluate").add_argument
    add("--bits", action="store_true", default=None, help="only how well the network fits real pictures, in bits")


def run(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """How close the samples are to real pictures, in numbers; and some samples above their nearest neighbours."""
    if args.bits:
        return bits.run(args, trained, specs)
    recipe, files, count = trained.recipe, [], args.sample_num or 2000
    source, data_path, split = real_data(args, recipe)
    size, channels = recipe["image_size"], recipe["image_channel"]
    real = real_pictures(source["dataset"], data_path, split, source["split"], size, channels)
    evaluation = Evaluation(real, extractor_for(source["dataset"], channels, trained.device), count)
    for spec in specs:
        began = time.monotonic()
        samples = torch.cat([to_uint8(x) for x in trained.batches(count, spec, args.seed, args.batch_size)])
        seconds, (report, apart, number) = round(time.monotonic() - began, 1), evaluation(samples)
        report = dict(  # raises TypeError if the report already has one of these keys; {…} would not
            model=args.model_path.name, weights=trained.weights, step=trained.step, sample_info=str(spec),
            seed=args.seed, precision=args.precision, device=str(trained.device), seconds=seconds,
            data=source["data_name"], split=split, **report,
        )  # fmt: skip
        print(summary(report))
        file = picture_path(args, f"{spec}_evaluate").with_suffix(".json")
        write_file(file, json.dumps(report, indent=1) + "\n")
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files += [file, save_grid(torch.cat(rows), picture_path(args, f"{spec}_neighbours"), len(first))]
    return files
