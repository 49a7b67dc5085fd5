"""The flags that choose real pictures to start from or to compare with."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from datasets import SPLITS
from runs.config import load_recipe


def add_flags(parser: ArgumentParser) -> None:
    """The flags that choose real pictures to interpolate between or to compare with."""
    add = parser.add_argument_group("interpolate, inpaint, edit and evaluate: real pictures").add_argument
    add("--data_name", metavar="NAME", help="a block of the configuration; default: the training's data set")
    add("--data_path", metavar="P", help="where the data are")
    add("--split", choices=SPLITS, help="default: the split of the training")
    add("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="for --data_name")


def real_data(args: Namespace, recipe: dict) -> tuple[dict, str, str]:
    """(recipe, data_path, split) of the real pictures that those flags choose, by default those of the training."""
    source = load_recipe(args.config, args.data_name) if args.data_name else recipe
    return source, args.data_path or source["data_path"], args.split or source["split"]
