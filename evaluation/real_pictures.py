"""The real pictures that samples are compared with, and the floor: how far real pictures are from each other."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets import OTHER_SPLIT, DataError, Reading, find_images, find_labels, load_images
from datasets.folder import AS_EVER
from evaluation.parts import shuffled
from runs.labels import in_proportion

LEAST = 20  # pictures of a split: ten in each half, as many as the jackknife of the distances has groups


@dataclass(frozen=True)
class RealPictures:
    """The splits of a data set that an evaluation uses, each uint8 (N, C, H, W)."""

    splits: dict[str, Tensor]
    split: str  # the split that samples are compared with
    trained_split: str  # the split that the network was trained on

    @property
    def pictures(self) -> Tensor:
        return self.splits[self.split]

    @property
    def training(self) -> Tensor:
        return self.splits[self.trained_split]

    @property
    def held_out(self) -> Tensor | None:
        """The split that the network was not trained on, if there is one."""
        return self.splits.get(OTHER_SPLIT.get(self.trained_split))

    def floor(self, count: int) -> tuple[Tensor | slice, Tensor, str]:
        """(reference, others, what the others are): rows of `pictures`, and at most `count` other real pictures.

        Samples have their distance to the reference. The distance of the others to it, the floor, is what perfect
        samples would reach. The others are from the other split. If there is none (a folder, or all of a data set), the
        reference and the others are from two halves of the pictures.
        """
        if self.held_out is None or self.split not in OTHER_SPLIT:
            reference, others = shuffled(len(self.pictures)).tensor_split(2)
            return reference, self.pictures[others[:count]], "the other half"
        others = self.splits[OTHER_SPLIT[self.split]]
        return slice(None), others[shuffled(len(others))[:count]], f"the {OTHER_SPLIT[self.split]} split"


def real_pictures(
    dataset: str, data_path: str, split: str, trained_split: str, size: int, channels: int, reading: Reading = AS_EVER
) -> RealPictures:
    """Loads the split to compare with, the one trained on, and the held-out one if the data set has it."""

    def load(name: str, download: bool = True) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a memory-mapped file is read only
            pictures = torch.from_numpy(load_images(dataset, data_path, name, size, channels, download, reading))
        if len(pictures) < LEAST:
            raise DataError(f"{data_path}: {len(pictures)} pictures are too few to compare with; at least {LEAST}")
        return pictures

    splits = {name: load(name) for name in dict.fromkeys((trained_split, split))}
    try:
        held_out = OTHER_SPLIT[trained_split]
        splits[held_out] = splits[held_out] if held_out in splits else load(held_out, download=False)
    except (KeyError, DataError):
        pass
    return RealPictures(splits, split, trained_split)


def labels_like(dataset: str, data_path: str, split: str, names: list[str], count: int) -> list[int] | None:
    """The classes of `count` samples in the proportions of a split, as numbers of names; see `in_proportion`.

    None, with a line that says so, where the data have no such classes.
    """
    try:
        found = find_images(dataset, data_path, split, download=False)
        sizes = np.bincount(find_labels(dataset, found, data_path, split, names)[0], minlength=len(names))[: len(names)]
    except DataError:
        sizes = np.zeros(len(names))
    if not sizes.any():
        print(f"samples are of every class evenly: the {split} split of {data_path} has no labels of these classes")
        return None
    return in_proportion(sizes, count)
