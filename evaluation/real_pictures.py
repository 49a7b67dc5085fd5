"""The real pictures that samples are compared with, and the floor: how far real pictures are from each other."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import OTHER_SPLIT, DataError, Reading, find_images, find_labels, load_images
from datasets.cache import cache_folders
from evaluation.parts import shuffled
from runs.labels import in_proportion

LEAST = 20  # pictures of a split: ten in each half, as many as the jackknife of the distances has groups


@dataclass(frozen=True)
class RealPictures:
    """uint8 (N, C, H, W) each; `pictures` is one of the others, or the whole data set."""

    pictures: Tensor  # the split that samples are compared with
    training: Tensor  # the split that the network was trained on
    held_out: Tensor | None = None  # the split that it was not trained on, if there is one
    folders: Sequence[Path] = ()  # where what is computed from them can be kept, the better place first

    @property
    def unseen(self) -> Tensor:
        """The held-out pictures, or those trained on where no others are at hand."""
        return self.training if self.held_out is None else self.held_out

    def floor(self, count: int) -> tuple[Tensor | slice, Tensor, str]:
        """(reference, others, what the others are): rows of `pictures`, and at most `count` other real pictures.

        Samples have their distance to the reference. The distance of the others to it, the floor, is what perfect
        samples would reach. The others are from the other split. If there is none (a folder, or all of a data set), the
        reference and the others are from two halves of the pictures.
        """
        if self.held_out is None or (self.pictures is not self.training and self.pictures is not self.held_out):
            reference, others = shuffled(len(self.pictures)).tensor_split(2)
            return reference, self.pictures[others[:count]], "the other half"
        others = self.held_out if self.pictures is self.training else self.training
        return slice(None), others[shuffled(len(others))[:count]], "the other split"


def load(data: dict, split: str, download: bool = True) -> Tensor:
    """uint8 (N, C, H, W): a split of the data that a recipe, or the part of it that says where they are, names."""
    where = data["dataset"], data["data_path"], split, data["image_size"], data["image_channel"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a memory-mapped file is read only
        return torch.from_numpy(load_images(*where, download, Reading.of(data)))


def real_pictures(data: dict, split: str, trained_split: str) -> RealPictures:
    """Loads the split to compare with, the one trained on, and the held-out one if the data set has it."""

    def enough(name: str, download: bool = True) -> Tensor:
        pictures = load(data, name, download)
        if len(pictures) < LEAST:
            where = data["data_path"]
            raise DataError(f"{where}: {len(pictures)} pictures are too few to compare with; at least {LEAST}")
        return pictures

    splits = {name: enough(name) for name in dict.fromkeys((trained_split, split))}
    held_out = OTHER_SPLIT.get(trained_split)
    if held_out and held_out not in splits:
        with suppress(DataError):
            splits[held_out] = enough(held_out, download=False)
    where = Path(data["data_path"])
    folders = cache_folders(where, Reading.of(data)) if where.is_dir() else ()
    return RealPictures(splits[split], splits[trained_split], splits.get(held_out), folders)


def labels_like(data: dict, split: str, names: list[str], count: int, download: bool = True) -> list[int] | None:
    """The classes of `count` samples in the proportions of a split, as numbers of names; see `in_proportion`.

    None, with a line that says so, where the data have no such classes. DataError where there are no data.
    """
    dataset, data_path = data["dataset"], data["data_path"]
    found = find_images(dataset, data_path, split, download)
    try:
        numbers, _ = find_labels(dataset, found, data_path, split, names)
        sizes = np.bincount(numbers, minlength=len(names))[: len(names)]
    except DataError:
        sizes = np.zeros(len(names))
    if not sizes.any():
        print(f"samples are of every class evenly: the {split} split of {data_path} has no labels of these classes")
        return None
    return in_proportion(sizes, count)
