"""Measures how close the samples are to real pictures."""

import json
import time
from argparse import ArgumentParser, Namespace
from itertools import product
from pathlib import Path

import torch

from datasets import DataError, load_labelled, to_uint8
from diffusion import SampleSpec
from evaluation.features import Extractor, extractor_for
from evaluation.numbers import Evaluation, summary
from evaluation.real_pictures import labels_like, real_pictures
from files.atomic import write_file
from files.errors import ConfigError
from runs.labels import class_names
from runs.run import Run
from test_modes import bits
from test_modes.labels import described, names_of
from test_modes.names import picture_path
from test_modes.real_data import real_data
from utils.pictures import save_grid

FLAGS = ("bits", "data_name", "data_path", "split", "labels", "guidance", "classes")


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("evaluate").add_argument
    add("--bits", action="store_true", default=None, help="only how well the network fits real pictures, in bits")
    text = "without --labels: in the proportions of the split (default), or each in turn"
    add("--classes", choices=("proportional", "even"), help=text)


def run(args: Namespace, trained: Run, specs: list[SampleSpec]) -> list[Path]:
    """How close the samples are to real pictures, in numbers; and some samples above their nearest neighbours."""
    if args.bits:
        return bits.run(args, trained, specs)
    recipe, files, count = trained.recipe, [], args.sample_num or 2000
    source, data_path, split = real_data(args, recipe)
    size, channels = recipe["image_size"], recipe["image_channel"]
    real = real_pictures(source["dataset"], data_path, split, source["split"], size, channels)
    extractor = extractor_for(source["dataset"], channels, trained.device)
    evaluation = Evaluation(real, extractor, count, mirrored=recipe["horizontal_flip"])
    labels, drawn = names_of(args, recipe), drawn_labels(args, recipe, (source["dataset"], data_path, split), count)
    each = [class_names(recipe)[number] for number in drawn or []]
    asked, classes, accuracy = asked_for(each, count, extractor, (source["dataset"], data_path, "test", size, channels))
    for spec, weight in product(specs, args.guidance):
        began = time.monotonic()
        batches = trained.batches(count, spec, args.seed, args.batch_size, labels=drawn, guidance=weight)
        samples = torch.cat([to_uint8(x) for x in batches])
        seconds, (report, apart, number) = round(time.monotonic() - began, 1), evaluation(samples, asked, classes)
        if labels:
            how = "in turn" if drawn is args.labels else f"in the proportions of the {split} split"
            report |= {"labels": labels, "classes_drawn": how, "guidance": weight}
        if "as_asked" in report:
            report["as_asked"]["real"] = accuracy
        report = dict(  # raises TypeError if the report already has one of these keys; {…} would not
            model=args.model_path.name, weights=trained.weights, step=trained.step, sample_info=str(spec),
            seed=args.seed, precision=args.precision, device=str(trained.device), seconds=seconds,
            data=source["data_name"], split=split, **report,
        )  # fmt: skip
        print(summary(report))
        file = picture_path(args, f"{described(spec, weight)}_evaluate").with_suffix(".json")
        write_file(file, json.dumps(report, indent=1) + "\n")
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files += [
            file,
            save_grid(torch.cat(rows), picture_path(args, f"{described(spec, weight)}_neighbours"), len(first)),
        ]
    return files


def drawn_labels(args: Namespace, recipe: dict, data: tuple, count: int) -> list[int] | None:
    """The classes that the samples have in turn. Without --labels they are in the proportions of the split.

    data: the first arguments of `labels_like`.
    """
    names = class_names(recipe)
    every = args.labels == list(range(len(names)))
    if args.classes and not every:
        raise ConfigError("--classes needs a network with labels, and no --labels, which the samples have in turn")
    even = not every or args.classes == "even"
    return args.labels if even else labels_like(*data, names, count) or args.labels


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
