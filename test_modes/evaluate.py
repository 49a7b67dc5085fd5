"""Measures how close the samples are to real pictures."""

import time
from itertools import product
from pathlib import Path

import torch

from datasets import DataError, Reading, load_labelled, to_uint8
from evaluation.features import Extractor, extractor_for
from evaluation.numbers import Evaluation, summary
from evaluation.real_pictures import labels_like, real_pictures
from files.errors import ConfigError
from runs.labels import class_names
from test_modes import bits
from test_modes.given_pictures import real_data
from test_modes.job import Job
from utils.pictures import save_grid


def run(job: Job) -> list[Path]:
    """How close the samples are to real pictures, in numbers; and some samples above their nearest neighbours."""
    if job.args.bits:
        return bits.run(job)
    args, trained, recipe = job.args, job.trained, job.trained.recipe
    files, count, (data, split) = [], args.sample_num or 2000, real_data(args, recipe)
    real = real_pictures(data, split, data["split"])
    extractor = extractor_for(data["dataset"], recipe["image_channel"], trained.device)
    evaluation = Evaluation(real, extractor, count, mirrored=recipe["horizontal_flip"])
    drawn = drawn_labels(job, data, split, count)
    asked, classes, accuracy = asked_for([class_names(recipe)[i] for i in drawn or []], count, extractor, data)
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
        facts = {"seconds": seconds, "data": data["data_name"], "split": split}
        files.append(job.report(summary, spec, "evaluate", weight, **facts, **report))
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files.append(save_grid(torch.cat(rows), job.path(spec, "neighbours", weight), len(first)))
    return files


def drawn_labels(job: Job, data: dict, split: str, count: int) -> list[int] | None:
    """The classes that the samples have in turn. Without --labels they are in the proportions of the split."""
    args, names = job.args, class_names(job.trained.recipe)
    if args.classes and (args.labels or not names):
        raise ConfigError("--classes needs a network with labels, and no --labels, which the samples have in turn")
    proportional = names and not args.labels and args.classes != "even"
    return (proportional and labels_like(data, split, names, count)) or job.labels


def asked_for(labels: list[str], count: int, extractor: Extractor | None, data: dict) -> tuple:
    """(asked, classes, accuracy): the class that each sample was asked for, int64 (count,), as a number of the classes
    that the classifier knows; and which share of test pictures, which it was not trained on, it gets right.

    labels: the names that the samples have in turn. asked is None where there are no labels, no classifier or no real
    labels.
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
