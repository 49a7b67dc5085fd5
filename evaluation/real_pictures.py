"""The real pictures that samples are compared with, and the floor: how far real pictures are from each other."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets import OTHER_SPLIT, DataError, Reading, load_images
from datasets.folder import AS_EVER

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

    def floor(self) -> tuple[Tensor, Tensor, str]:
        """(reference, others, what the others are): two disjoint sets of real pictures.

        Samples have their distance to the reference. The distance of the others to it, the floor, is what perfect
        samples would reach. The others are the other split. If there is none (a folder, or all of a data set), the
        reference and the others are two halves of the pictures.
        """
        if self.held_out is None or self.split not in OTHER_SPLIT:
            reference, others = shuffled(self.pictures).tensor_split(2)
            return reference, others, "the other half"
        other = OTHER_SPLIT[self.split]
        return self.pictures, shuffled(self.splits[other]), f"the {other} split"


def real_pictures(
    dataset: str, data_path: str, split: str, trained_split: str, size: int, channels: int, reading: Reading = AS_EVER
) -> RealPictures:
    """Loads the split to compare with, the one trained on, and the held-out one if the data set has it."""

    def load(name: str, download: bool = True) -> Tensor:
        pictures = torch.from_numpy(np.array(load_images(dataset, data_path, name, size, channels, download, reading)))
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


def shuffled(pictures: Tensor) -> Tensor:
    """The pictures in random order, the same in every call."""
    return pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))]
