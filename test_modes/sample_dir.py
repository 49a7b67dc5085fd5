"""A folder of numbered samples that can be filled in several runs and never mixes different samplers or networks."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from diffusion import SampleSpec
from files.atomic import clear_parts, write_file
from files.errors import ConfigError
from files.seal import sha256_of
from runs.recipe import DIFFUSION_KEYS, KEYS, MODEL_KEYS, changed_keys
from runs.run import Run
from utils.pictures import is_complete_png, png

IDENTITY, SAMPLE = "samples.json", re.compile(r"[0-9]+\.png")


def identity_of(run: Run, spec: SampleSpec, seed: int, precision: str, labels: list[int] | None, weight: float) -> dict:
    """Everything that determines the samples. The weights are hashed: in another file they are still the same."""
    weights = sha256_of(run.model.state_dict())
    identity = {"weights": weights, "sample_info": str(spec), "seed": seed, "precision": precision}
    identity |= {"labels": labels, "guidance": weight} if labels else {}
    return identity | {key: run.recipe[key] for key in (*MODEL_KEYS, *DIFFUSION_KEYS) if key != "dropout"}


def sample_file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def extends(now: list[int] | None, was: list[int] | None, count: int) -> bool:
    """Whether another list of classes, which samples have in turn, gives the first `count` and all of `was` the same.

    Of classes in proportion the list is as long as the samples: with more of them it begins as before.
    """
    if not (isinstance(was, list) and was and now) or was == now:
        return False
    return all(was[i % len(was)] == now[i % len(now)] for i in range(max(len(was), count)))


class SampleDir:
    """000000.png, 000001.png, … and samples.json, which holds the samples' `identity`.

    ConfigError if the folder holds samples of another identity, samples beyond `count`, or files but no samples.json.
    """

    def __init__(self, folder: Path, identity: dict, count: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder)
        file = folder / IDENTITY
        names = {other.name for other in folder.iterdir() if not other.name.startswith(".")}
        if names and IDENTITY not in names:  # it is always written first
            raise ConfigError(f"{folder} holds files but no {IDENTITY}: choose an empty or new folder as --sample_dir")
        numbers, content = [int(name[:-4]) for name in names if SAMPLE.fullmatch(name)], json.dumps(identity, indent=1)
        try:
            write_file(file, content + "\n", exclusive=True)  # by one of several processes
        except FileExistsError:
            try:
                found = dict(json.loads(file.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{file} is damaged: choose another --sample_dir") from error
            extended = numbers and extends(identity.get("labels"), found.get("labels"), max(numbers) + 1)
            found |= {"labels": identity["labels"]} if extended else {}
            later = KEYS.keys() - found.keys()  # keys that a folder of an earlier version does not have
            if changed := changed_keys(found, identity, identity.keys() - later):
                what = "; ".join(changed)
                raise ConfigError(f"{folder} holds other samples ({what}): choose another --sample_dir") from None
            if extended:
                write_file(file, content + "\n")
        if numbers and max(numbers) >= count:
            remedy = f"give --sample_num {max(numbers) + 1} or more, or another --sample_dir"
            raise ConfigError(f"{folder} holds sample {max(numbers)}, beyond --sample_num {count}: {remedy}")

    def has(self, index: int) -> bool:
        """Whether this sample exists and is complete."""
        return is_complete_png(sample_file(self.folder, index))

    def save(self, indices: Iterable[int], pixels: Tensor) -> None:
        """Writes uint8 pixels (B, 1 or 3, H, W), each under its number; complete files are kept."""
        for index, picture in zip(indices, pixels.numpy(), strict=True):
            if not self.has(index):
                picture = picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0))
                write_file(sample_file(self.folder, index), png(Image.fromarray(picture)), sync=False)  # see `has`
