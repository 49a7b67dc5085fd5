"""What every mode gets: the network, what is asked of it, and how its files are called."""

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from diffusion import Frame, SampleSpec
from files.atomic import write_file
from runs.run import Run, in_batches
from test_modes.progress import FILM_FRAMES, progress_frames


@dataclass(frozen=True)
class Job:
    """args: the flags. specs: the samplers. precision: what the network computes in. stem: how all names begin.

    labels, names: the classes that the samples have in turn, by number and by name; None and [] for a network without
    labels. guidance: its weights, of which some modes take only one.
    """

    args: Namespace
    trained: Run
    specs: list[SampleSpec]
    precision: str
    stem: str
    labels: list[int] | None
    names: list[str]
    guidance: list[float]

    def rows(self, count: int) -> tuple[list[str], list[int]]:
        """The names of the rows that show the first `count` samples by class, and in which of them each sample is.

        Rows are in the order of --labels; of classes in proportion, by number.
        """
        rows = dict(zip(self.labels or [], self.names, strict=True))
        names = list((rows if self.args.labels else dict(sorted(rows.items()))).values())
        return names, [names.index(self.names[i % len(self.names)]) for i in range(count)] if names else []

    def path(self, of: SampleSpec | str | Path, what: str = "", guidance: float = 1.0) -> Path:
        """<save_dir>/<time>_seed<seed>_<model>_<of>_guidance<guidance>_<what>.png, guidance only where it is not 1.

        of: a sampler, or what is drawn. Long names are cut: file systems hold names of 255 bytes.
        """
        guided = f"_guidance{guidance}".removesuffix(".0").replace(".", "p") * (guidance != 1)
        names = (self.args.model_path.stem, 120), (of.resolve().name if isinstance(of, Path) else str(of), 50)
        model, of = (os.fsencode(name)[:most].decode(errors="ignore") for name, most in names)
        return self.args.save_dir / f"{self.stem}_{model}_{of}{guided}{'_' * bool(what)}{what}.png"

    def states(self, count: int, calls: int, what: str, frames_of: Callable[..., Iterator[Frame]]) -> list[Tensor]:
        """The result of a sampler, (count, C, H, W), after the states that a film shows; drawn in batches.

        frames_of: a sampler of so many calls, as a function of x_T, the noise and the numbers of the pictures.
        """
        batches, kept = [], set(progress_frames(calls, FILM_FRAMES)) if self.args.animate else {calls}
        for indices in in_batches(count, self.args.batch_size):
            frames = frames_of(*self.trained.noise(indices, self.args.seed), indices)
            frames = tqdm(frames, f"{what}, pictures {indices[0]} to {indices[-1]}", calls, leave=False)
            batches.append([frame.sample.cpu() for done, frame in enumerate(frames, 1) if done in kept])
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    def report(self, show: Callable, of: SampleSpec | Path, what: str, weight: float = 1.0, **numbers) -> Path:
        """Prints numbers as `show` has them, and writes them as JSON. of: the sampler, or where the pictures are."""
        drawn_by = {"samples": str(of)} if isinstance(of, Path) else {
            "model": self.args.model_path.name, "weights": self.trained.weights, "step": self.trained.step,
            "sample_info": str(of), "seed": self.args.seed, "precision": self.precision,
        }  # fmt: skip
        report = dict(device=str(self.trained.device), **drawn_by, **numbers)  # TypeError for a key that is there twice
        print(show(report))
        return write_file(self.path(of, what, weight).with_suffix(".json"), json.dumps(report, indent=1) + "\n")
