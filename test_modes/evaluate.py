"""Measures how close the samples are to real pictures."""

import time
from argparse import Namespace
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from datasets import DataError, Reading, find_images, load_labelled, picture_shape, to_uint8
from evaluation.distances import GROUPS, Statistics
from evaluation.features import Extractor, extractor_for
from evaluation.numbers import Evaluation, summary
from evaluation.parts import shuffled
from evaluation.real_pictures import labels_like, real_pictures
from files.errors import ConfigError
from runs.labels import class_names
from test_modes import bits, random_gen
from test_modes.given_pictures import real_data, samples_in
from test_modes.job import Job
from test_modes.sample_dir import sample_file
from utils.device import rank_and_world
from utils.pictures import save_grid


def run(job: Job) -> list[Path]:
    """How close the samples are to real pictures, in numbers; and some samples above their nearest neighbours."""
    if job.args.bits:
        return bits.run(job)
    args, trained, recipe = job.args, job.trained, job.trained.recipe
    files, (data, split), count = [], real_data(args, recipe), args.sample_num or 2000
    extractor = extractor_for(data["dataset"], recipe["image_channel"], trained.device, args.features or "auto")
    published = statistics(args.statistics, extractor, recipe) if args.statistics else None
    labels, how = (None, "") if args.samples else drawn_labels(job, data, split, count)
    names = [class_names(recipe)[i] for i in labels or []]
    if args.sample_dir:
        *files, _ = random_gen.fill_sample_dir(replace(job, labels=labels, names=names), count)
        if rank_and_world()[0]:
            return files
    given = given_samples(args, count, recipe)
    count = count if given is None else len(given)
    real = real_pictures(data, split, data["split"])
    evaluation = Evaluation(real, extractor, count, recipe["horizontal_flip"], published)
    asked, classes, accuracy = asked_for(names, count, extractor, data)
    for spec, weight in [(args.samples, 1.0)] if args.samples else product(job.specs, job.guidance):
        began, samples = time.monotonic(), given
        if samples is None:
            batches = trained.batches(count, spec, args.seed, args.batch_size, labels=labels, guidance=weight)
            samples = torch.cat([to_uint8(x) for x in batches])
        took = {} if given is not None else {"seconds": round(time.monotonic() - began, 1)}  # without the evaluation
        report, apart, number = evaluation(samples, asked, classes)
        if labels:
            report |= {"labels": job.names, "classes_drawn": how, "guidance": weight}
        if "as_asked" in report:
            report["as_asked"]["real"] = accuracy
        facts = took | {"data": data["data_name"], "split": split}
        files.append(job.report(summary, spec, "evaluate", weight, **facts, **report))
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files.append(save_grid(torch.cat(rows), job.path(spec, "neighbours", weight), len(first)))
    return files


def given_samples(args: Namespace, count: int, recipe: dict) -> torch.Tensor | None:
    """The samples of --samples, or the first `count` of --sample_dir: uint8 (N, C, H, W). None without these flags."""
    if args.samples:
        found = find_images("Folder", args.samples, "all", False)
        found = [found[i] for i in shuffled(len(found))[: args.sample_num]]  # theirs may be sorted by class
        return samples_in(found, args.sample_num or GROUPS, "--samples", recipe)
    if not args.sample_dir:
        return None
    found = [sample_file(args.sample_dir, i) for i in range(count)]
    while not all(file.exists() for file in found):
        time.sleep(1)  # the other processes draw theirs
    return samples_in(found, count, "--sample_dir", recipe)


def statistics(file: Path, extractor: Extractor | None, recipe: dict) -> Statistics:
    """mu and sigma in an .npz. ConfigError if they are not those of these features."""
    if not extractor:
        raise ConfigError("--statistics: there are no features for these pictures: try --features imagenet")
    blank = torch.zeros(1, *picture_shape(recipe["image_size"], recipe["image_channel"]), dtype=torch.uint8)
    size = extractor.features(blank).shape[1]
    try:
        mean, covariance = (torch.from_numpy(np.load(file)[key]) for key in ("mu", "sigma"))
        if not (mean.isfinite().all() and covariance.isfinite().all()):
            raise ValueError("not all are finite")
        return Statistics(mean.reshape(size), covariance.reshape(size, size))
    except Exception as error:  # NumPy and zipfile raise many types for a damaged file
        raise ConfigError(f"--statistics {file}: no mu and sigma of {size} features, as these are ({error})") from error


def drawn_labels(job: Job, data: dict, split: str, count: int) -> tuple[list[int] | None, str]:
    """The classes that the samples have in turn, and how they were chosen: in the proportions of the split.

    With --labels, or where the split has no such classes, it is each in turn.
    """
    args, names = job.args, class_names(job.trained.recipe)
    if args.classes and (args.labels or not names):
        raise ConfigError("--classes needs a network with labels, and no --labels, which the samples have in turn")
    proportional = names and not args.labels and args.classes != "even"
    alone = rank_and_world()[1] == 1
    try:
        drawn = labels_like(data, split, names, count, download=alone) if proportional else None
    except DataError as error:
        raise DataError(f"{error}{'; or download them without torchrun first' * (not alone)}") from error
    how = f"in the proportions of the {split} split" if drawn else "in turn"
    in_turn = not drawn or drawn == [i % len(names) for i in range(count)]  # then as random_gen draws into a folder
    return job.labels if in_turn else drawn, how


def asked_for(labels: list[str], count: int, extractor: Extractor | None, data: dict) -> tuple:
    """(asked, classes, accuracy): the class that each sample was asked for, int64 (count,), as a number of the classes
    that the classifier knows; and its accuracy on test pictures. asked is None where there is no way to tell.

    labels: the names that the samples have in turn.
    """
    if labels and extractor and extractor.classes:
        try:
            where = data["dataset"], data["data_path"], "test", data["image_size"], data["image_channel"]
            images, numbers, classes = load_labelled(*where, reading=Reading.of(data))
            asked = torch.tensor([classes.index(label) for label in labels])[torch.arange(count) % len(labels)]
            taken = extractor.classes(extractor.features(torch.from_numpy(images)))
            return asked, classes, (taken.numpy() == numbers).mean().item()
        except (DataError, ValueError) as error:
            print(f"no share of the samples that are as asked for: {error}")
    return None, [], 0.0
