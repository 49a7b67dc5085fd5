"""A folder of numbered samples that can be stopped at any time, gone on with, and never mixed up."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from diffusion import SampleSpec
from utils.checkpoint import Run
from utils.config import DIFFUSION_KEYS
from utils.errors import ConfigError

IDENTITY = "samples.json"


def identity_of(run: Run, spec: SampleSpec, seed: int, precision: str) -> dict:
    """What decides every sample. The weights are there as a hash: in another file they are still the same."""
    digest = hashlib.sha256()
    for name, weight in sorted(run.model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    identity = {"weights": digest.hexdigest(), "sample_info": str(spec), "seed": seed, "precision": precision}
    return identity | {key: run.recipe[key] for key in DIFFUSION_KEYS}


class SampleDir:
    """000000.png, 000001.png, … and samples.json, which says what they are samples of (`identity`).

    ConfigError if the folder holds samples of something else, more of them than `count`, or files but no samples.json.
    """

    def __init__(self, folder: Path, identity: dict, count: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / IDENTITY
        if file.exists():
            self._check(file, identity)
            there = sum(other.stem.isdigit() for other in folder.glob("*.png"))
            if there > count:
                raise ConfigError(f"{folder} holds {there} samples, more than --sample_num {count}: choose another")
        elif any(other.suffix != ".part" for other in folder.iterdir()):
            raise ConfigError(f"{folder} holds files but no {IDENTITY}: choose an empty or a new --sample_dir")
        else:
            self._write(file, lambda part: part.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8"))

    @staticmethod
    def _check(file: Path, identity: dict) -> None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            differ = [f"{k}: was {found.get(k)}, is {v}" for k, v in identity.items() if found.get(k) != v]
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{file} is damaged: choose another --sample_dir") from error
        if differ:
            raise ConfigError(f"{file.parent} holds samples of another run ({'; '.join(differ)}): choose another")

    def file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def has(self, indices: Iterable[int]) -> bool:
        """Whether all of these samples are there. What is there is whole: files are renamed when written."""
        return all(self.file(i).exists() for i in indices)

    def save(self, indices: Iterable[int], pixels: Tensor) -> None:
        """Writes uint8 pixels (B, 1 or 3, H, W), each under its number."""
        for index, picture in zip(indices, pixels.numpy(), strict=True):
            image = Image.fromarray(
                picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0))
            )
            self._write(self.file(index), lambda part, image=image: image.save(part, "png"))

    @staticmethod
    def _write(file: Path, write) -> None:
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            write(part)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
