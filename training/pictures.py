"""The pictures that a training sees, and their classes."""

import os
from pathlib import Path

import numpy as np

from datasets import DataError, Reading, find_images, find_labels, fit_images
from files.errors import ConfigError
from runs.recipe import coerce


def with_classes(recipe: dict, download: bool = True) -> dict:
    """The recipe with the number and the names of the classes that its pictures are of, if it has num_classes.

    Unchanged if the data are missing and are not to be downloaded. Raises DataError for data without labels, and
    ConfigError for another number of classes than num_classes, and for classes that no recipe can hold.
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
        raise ConfigError(
            f"num_classes={recipe['num_classes']}: {recipe['data_path']} has {len(names)} classes in its "
            f"{recipe['split']} split: set num_classes=auto, or null for a network without labels"
        )
    found = {"num_classes": len(names), "class_names": names}
    try:
        return recipe | {key: coerce(recipe["data_path"], key, value) for key, value in found.items()}
    except ConfigError as error:
        raise ConfigError(f"{error}: rename or merge its folders, or set num_classes=null") from error


def check_outside(folder: Path, recipe: dict, found: np.ndarray | list[Path]) -> None:
    """ConfigError if previews in this folder would become training pictures of the next run.

    found: by `find_pictures`.
    """
    if isinstance(found, np.ndarray):
        return
    inside, data_path = Path(os.path.realpath(folder)), Path(os.path.realpath(recipe["data_path"]))
    searched = {Path(os.path.realpath(parent)) for parent in {file.parent for file in found}}
    hidden = inside.is_relative_to(data_path) and "/." in f"/{inside.relative_to(data_path).as_posix()}"
    if (inside.is_relative_to(data_path) and not hidden) or any(parent.is_relative_to(inside) for parent in searched):
        raise ConfigError(
            f"save_dir={recipe['save_dir']} is inside data_path={recipe['data_path']}, so that previews would become "
            "training pictures: set another save_dir, or move the pictures to a folder of their own"
        )


def find_pictures(recipe: dict, folder: Path, download: bool = True) -> np.ndarray | list[Path]:
    """What `find_images` finds for a recipe, with its errors. folder: of the run, see `check_outside`."""
    found = find_images(recipe["dataset"], recipe["data_path"], recipe["split"], download)
    check_outside(folder, recipe, found)
    return found


def training_pictures(recipe: dict, found: np.ndarray | list[Path]) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 (N, C, H, W), and their labels, int64 (N,); None for a network without labels.

    found: by `find_pictures`.
    """
    data = found, recipe["data_path"], recipe["split"]
    images, rows = fit_images(*data, recipe["image_size"], recipe["image_channel"], Reading.of(recipe))
    if not recipe["num_classes"]:
        return images, None
    return images, find_labels(recipe["dataset"], *data, recipe["class_names"])[0][rows]
