"""Measures how close the samples are to real pictures."""

import json
import time
from argparse import ArgumentParser
from itertools import product
from pathlib import Path

import torch

from datasets import DataError, Reading, load_labelled, to_uint8
from evaluation.features import Extractor, extractor_for
from evaluation.numbers import Evaluation, summary
from evaluation.real_pictures import labels_like, real_pictures
from files.atomic import write_file
from files.errors import ConfigError
from runs.labels import class_names
from test_modes import bits
from test_modes.job import Job
from test_modes.real_data import real_data
from utils.pictures import save_grid

FLAGS = ("bits", "data_name", "data_path", "split", "labels", "guidance", "classes")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("evaluate").add_argument
    add("--bits", action="store_true", default=None, help="only how well the network fits real pictures, in bits")
    text = "without --labels: in the proportions of the split (default), or each in turn"
    add("--classes", choices=("proportional", "even"), help=text)


def run(job: Job) -> list[Path]:
    """How close the samples are to real pictures, in numbers; and some samples above their nearest neighbours."""
    if job.args.bits:
        return bits.run(job)
    args, trained, recipe = job.args, job.trained, job.trained.recipe
    files, count = [], args.sample_num or 2000
    source, data_path, split = real_data(args, recipe)
    size, channels = recipe["image_size"], recipe["image_channel"]
    real = real_pictures(source["dataset"], data_path, split, source["split"], size, channels, Reading.of(source))
    extractor = extractor_for(source["dataset"], channels, trained.device)
    evaluation = Evaluation(real, extractor, count, mirrored=recipe["horizontal_flip"])
    drawn = drawn_labels(job, (source["dataset"], data_path, split), count)
    test_split = (source["dataset"], data_path, "test", size, channels, None, True, Reading.of(source))
    each = [class_names(recipe)[number] for number in drawn or []]
    asked, classes, accuracy = asked_for(each, count, extractor, test_split)
    for spec, weight in product(job.specs, job.guidance):
        began = time.monotonic()
        batches = trained.batches(count, spec, args.seed, args.batch_size, labels=drawn, guidance=weight)
        samples = torch.cat([to_uint8(x) for x in batches])
        seconds, (report, apart, number) = round(time.monotonic() - began, 1), evaluation(samples, asked, classes)
        if job.names:
            how = "in turn" if drawn is job.labels else f"in the proportions of the {split} split"
            report |= {"labels": job.names, "classes_drawn": how, "guidance": weight}
        if "as_asked" in report:
            report["as_asked"]["real"] = accuracy
        report = dict(  # raises TypeError if the report already has one of these keys; {…} would not
            model=args.model_path.name, weights=trained.weights, step=trained.step, sample_info=str(spec),
            seed=args.seed, precision=job.precision, device=str(trained.device), seconds=seconds,
            data=source["data_name"], split=split, **report,
        )  # fmt: skip
        print(summary(report))
        file = job.path(spec, "evaluate", weight).with_suffix(".json")
        write_file(file, json.dumps(report, indent=1) + "\n")
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files += [file, save_grid(torch.cat(rows), job.path(spec, "neighbours", weight), len(first))]
    return files


def drawn_labels(job: Job, data: tuple, count: int) -> list[int] | None:
    """The classes that the samples have in turn. Without --labels they are in the proportions of the split.

    data: the first arguments of `labels_like`.
    """
    args, names = job.args, class_names(job.trained.recipe)
    if args.classes and (args.labels or not names):
        raise ConfigError("--classes needs a network with labels, and no --labels, which the samples have in turn")
    if args.labels or args.classes == "even" or not names:
        return job.labels
    return labels_like(*data, names, count) or job.labels


def asked_for(
    labels: list[str], count: int, extractor: Extractor | None, data: tuple
) -> tuple[torch.Tensor | None, list[str], float]:
    """(asked, classes, accuracy): the class that each sample was asked for, int64 (count,), as a number of the classes
    that the classifier knows; and which share of real pictures the classifier gets right.

    labels: the names that the samples have in turn. data: the arguments of `load_labelled` for pictures that the
    classifier was not trained on. asked is None where there are no labels, no classifier or no real labels.
    """
    if not labels or not extractor or not extractor.classes:
        return None, [], 0.0
    try:
        images, numbers, classes = load_labelled(*data)
        asked = torch.tensor([classes.index(label) for label in labels])[torch.arange(count) % len(labels)]
    except (DataError, ValueError) as error:
        print(f"no share of the samples that are as asked for: {error}")
        return None, [], 0.0
    taken = extractor.classes(extractor.features(torch.from_numpy(images)))
    return asked, classes, (taken.numpy() == numbers).mean().item()
