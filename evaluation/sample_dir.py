"""A folder of numbered samples that can be filled in several runs and never mixes different samplers or networks."""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from diffusion import SampleSpec
from utils.checkpoint import Run
from utils.errors import ConfigError
from utils.recipe import DIFFUSION_KEYS

IDENTITY = "samples.json"


def identity_of(run: Run, spec: SampleSpec, seed: int, precision: str) -> dict:
    """Everything that determines the samples. The weights are hashed: in another file they are still the same."""
    digest = hashlib.sha256()
    for name, weight in sorted(run.model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.cpu().contiguous().numpy().tobytes())
    identity = {"weights": digest.hexdigest(), "sample_info": str(spec), "seed": seed, "precision": precision}
    return identity | {key: run.recipe[key] for key in DIFFUSION_KEYS}


class SampleDir:
    """000000.png, 000001.png, … and samples.json, which holds the samples' `identity`.

    ConfigError if the folder holds samples of another identity, samples beyond `count`, or files but no samples.json.
    """

    def __init__(self, folder: Path, identity: dict, count: int):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file, used = folder / IDENTITY, any(folder.iterdir())
        if used and not file.exists():  # it is always written first
            raise ConfigError(f"{folder} holds files but no {IDENTITY}: choose an empty or new folder as --sample_dir")
        try:
            with open(file, "x", encoding="utf-8") as stream:  # only one of several processes creates it
                stream.write(json.dumps(identity, indent=1) + "\n")
        except FileExistsError:
            self._check(file, identity)
        numbers = [int(other.stem) for other in folder.glob("*.png") if other.stem.isdigit()]
        if numbers and max(numbers) >= count:
            raise ConfigError(
                f"{folder} holds sample {max(numbers)}, beyond --sample_num {count}: choose another folder"
            )

    @staticmethod
    def _check(file: Path, identity: dict) -> None:
        deadline = time.monotonic() + 5  # another process may just be writing it
        while not (text := file.read_text(encoding="utf-8", errors="replace")) and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            found = json.loads(text)
            differ = [f"{k}: was {found.get(k)}, is {v}" for k, v in identity.items() if found.get(k) != v]
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{file} is damaged: choose another --sample_dir") from error
        if differ:
            raise ConfigError(f"{file.parent} holds other samples ({'; '.join(differ)}): choose another --sample_dir")

    def has(self, index: int) -> bool:
        """Whether this sample exists. Files are renamed when complete, so an existing one is complete."""
        return self._file(index).exists()

    def save(self, indices: Iterable[int], pixels: Tensor) -> None:
        """Writes uint8 pixels (B, 1 or 3, H, W), each under its number; existing files are kept."""
        for index, picture in zip(indices, pixels.numpy(), strict=True):
            file = self._file(index)
            if not file.exists():
                picture = picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0))
                part = file.with_name(f".{file.name}.{os.getpid()}.part")
                try:
                    Image.fromarray(picture).save(part, "png")
                    part.replace(file)
                finally:
                    part.unlink(missing_ok=True)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"
