"""The flags --labels and --guidance, for networks that were trained with labels."""

from argparse import ArgumentParser, Namespace

from files.errors import ConfigError
from runs.labels import class_names, class_numbers, usual_guidance
from utils.command_line import number


def add_flags(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("random_gen, compare and evaluate: a network with labels").add_argument
    add("--labels", nargs="+", metavar="L", help="classes by number or name; samples have them in turn; default: all")
    text = "0: no label, 1: the label, above 1: more of it; default: of the recipe; several: a picture or report each"
    add("--guidance", nargs="+", type=number(0, 1000, float), metavar="W", help=text)


def resolved(args: Namespace, recipe: dict, takes_labels: bool) -> dict:
    """The labels, names and guidance of a `Job` from these flags.

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
        numbers = [class_numbers(recipe, args.labels, w) for w in weights][0]
    except ValueError as error:
        raise ConfigError(f"{path}, --labels and --guidance: {error}") from error
    return {"labels": numbers, "names": [names[i] for i in numbers or []], "guidance": weights}
