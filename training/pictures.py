"""The pictures that a training sees, and their classes."""

from pathlib import Path

import numpy as np
import torch

from datasets import DataError, Reading, find_images, find_labels, fit_images
from files.errors import ConfigError
from runs.recipe import check_recipe
from training.held_out import Pictures
from training.trajectories import draw_trajectories


def with_classes(recipe: dict, download: bool = True) -> dict:
    """The recipe with the number and the names of the classes that its pictures are of, if it has num_classes.

    Unchanged if the data are missing and are not to be downloaded. Raises DataError for data without labels, and
    ConfigError for another number of classes.
    """
    if not recipe["num_classes"]:
        return recipe
    data = (recipe["data_path"], recipe["split"])
    try:
        found = find_images(recipe["dataset"], *data, download)
    except DataError:
        if download:
            raise
        return recipe
    labels, names = find_labels(recipe["dataset"], found, *data)
    names = [names[label] for label in np.unique(labels) if label < len(names)]
    if recipe["num_classes"] not in ("auto", len(names)):
        has = f"{recipe['data_path']} has {len(names)} classes in its {recipe['split']} split"
        raise ConfigError(f"num_classes={recipe['num_classes']}: {has}: set auto, or null for a network without labels")
    return check_recipe(recipe | {"num_classes": len(names), "class_names": names}, recipe["data_path"])


def find_pictures(recipe: dict, folder: Path, download: bool = True) -> np.ndarray | list[Path]:
    """What `find_images` finds for a recipe, with its errors.

    folder: of the run. ConfigError if its previews would become training pictures of the next run.
    """
    found = find_images(recipe["dataset"], recipe["data_path"], recipe["split"], download)
    if isinstance(found, list) and folder.resolve().is_relative_to(Path(recipe["data_path"]).resolve()):
        inside = f"save_dir={recipe['save_dir']} is inside data_path={recipe['data_path']}"
        raise ConfigError(f"{inside}, so that previews would become training pictures: set another save_dir")
    return found


def training_pictures(
    recipe: dict, found: np.ndarray | list[Path], folder: Path, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None, Pictures | None]:
    """The pictures that a training learns from, uint8 (N, C, H, W), and their labels, int64 (N,) or None for a network
    without labels; and those that are held out, where they are ends of trajectories, too.

    found: by `find_pictures`. folder, device: where trajectories are kept, and drawn.
    """
    data = found, recipe["data_path"], recipe["split"]
    images, rows = fit_images(*data, recipe["image_size"], recipe["image_channel"], Reading.of(recipe))
    labels = find_labels(recipe["dataset"], *data, recipe["class_names"])[0][rows] if recipe["num_classes"] else None
    if recipe["trajectories"]:
        return draw_trajectories(recipe, folder, labels, device)
    return images, labels, None
