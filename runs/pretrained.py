"""What a training starts from: the weights of another, init_from."""

from pathlib import Path

from torch import nn

from models import relabelled
from runs.config import read_yaml_file
from runs.labels import class_names
from runs.network import load_state
from runs.recipe import complete_recipe
from runs.run import load_run


def pretrained_recipe(recipe: dict) -> dict:
    """The recipe of the weights that a run starts from; its own if it has begun and they are gone."""
    saved, first = Path(recipe["save_dir"], recipe["pth_save_name"], "recipe.yaml"), Path(recipe["init_from"])
    if saved.exists() and not first.exists():
        return complete_recipe(read_yaml_file(saved), str(saved))
    return load_run(first).recipe


def load_pretrained(model: nn.Module, recipe: dict) -> None:
    """Loads the weights of init_from into the network of a recipe, which may have other classes.

    A class that the file knows by name keeps its embedding; see `relabelled` for the others.
    """
    file, names = recipe["init_from"], class_names(recipe)
    first = load_run(file)
    tensors, known = first.model.state_dict(), class_names(first.recipe)
    unnamed = not first.recipe["class_names"] and len(known) == len(names)  # from diffusers: the order has to do
    if names != known and not unnamed:
        numbers = {name: number for number, name in enumerate(known)}
        rows = [numbers.get(name) for name in names]
        if names:
            print(f"classes     {rows.count(None)} of {len(names)} are new to {file}")
        tensors = relabelled(tensors, rows)
    load_state(model, tensors, file)
