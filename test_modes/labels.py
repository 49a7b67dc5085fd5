"""The flags --labels and --guidance, for networks that were trained with labels."""

import argparse
from argparse import ArgumentParser, Namespace

from diffusion import SampleSpec
from files.errors import ConfigError
from runs.labels import class_names, class_numbers, usual_guidance


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("random_gen, compare and evaluate: a network with labels").add_argument
    add("--labels", nargs="+", metavar="L", help="classes by number or name; samples have them in turn; default: all")
    text = "0: no label, 1: the label, above 1: more of it; default: of the recipe; several: a picture or report each"
    add("--guidance", nargs="+", type=weight, metavar="W", help=text)


def weight(text: str) -> float:
    """A guidance, from the text of a flag. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1000")
    return value


def resolve_labels(args: Namespace, recipe: dict, takes_labels: bool) -> None:
    """Sets args.labels to the numbers of the classes, None for a network without labels, and args.guidance to weights.

    takes_labels: whether the mode has these flags. ConfigError for what the network cannot follow.
    """
    path, names = args.model_path, class_names(recipe)
    weights = list(dict.fromkeys(args.guidance or [usual_guidance(recipe)]))
    if not names and (args.labels or args.guidance):
        raise ConfigError(f"{path} was trained without labels: leave out --labels and --guidance")
    if names and not takes_labels and not recipe["label_dropout"]:
        raise ConfigError(
            f"{path} was trained with label_dropout=0, and {args.test_mode} needs a network without labels"
        )
    if args.sample_dir and len(weights) > 1:
        raise ConfigError("--sample_dir takes the samples of one --guidance")
    try:
        args.labels, args.guidance = [class_numbers(recipe, args.labels, w) for w in weights][0], weights
    except ValueError as error:
        raise ConfigError(f"{path}, --labels and --guidance: {error}") from error


def names_of(args: Namespace, recipe: dict) -> list[str]:
    """The names of args.labels."""
    return [class_names(recipe)[number] for number in args.labels or []]


def described(what: SampleSpec | str, guidance: float) -> str:
    """A sampler, or what is drawn, and its guidance in the name of a file."""
    return str(what) + f"_guidance{guidance}".removesuffix(".0").replace(".", "p") * (guidance != 1)
