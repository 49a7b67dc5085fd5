"""Samples along a training, always from the same noise."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import picture_shape
from diffusion import GaussianDiffusion, SampleSpec, sample_progressive
from diffusion.gaussian import Model
from diffusion.guidance import with_labels
from files.errors import out_of_memory_means
from runs.labels import class_names, in_proportion, usual_guidance
from training.processes import Processes, StopRequest
from utils.pictures import is_complete_png, save_by_class

FEW_CALLS, COLUMNS = ("DDPM_1_0p0", "DDPM_2_0p0", "DDPM_4_0p0"), 16  # what previews of trajectories show


class Preview:
    """Draws preview_<step>.png into the run's folder, every sample_every steps and at the end, in rank 0.

    network: usually the average. labels: int64 (N,), those of the pictures, for a network with labels: the samples are
    in their proportions. A signal ends a drawing early, without a picture; the resumed run draws it.
    """

    def __init__(
        self, folder: Path, recipe: dict, network: Model, diffusion: GaussianDiffusion, processes: Processes,
        stop: StopRequest, steps: int, labels: np.ndarray | None = None,
    ):  # fmt: skip
        self.folder, self.recipe, self.network, self.diffusion = folder, recipe, network, diffusion
        self.processes, self.stop, self.steps = processes, stop, steps
        names = class_names(recipe)
        sizes = np.bincount(labels, minlength=len(names))[: len(names)] if names else []
        self.labels = in_proportion(sizes, recipe["sample_num"]) if names else None

    def file(self, step: int) -> Path:
        return self.folder / f"preview_{step:08d}.png"

    def due(self, step: int) -> bool:
        """Whether a preview is to be drawn after `step` steps."""
        return step % self.recipe["sample_every"] == 0 or step >= self.steps

    def missing(self, step: int) -> bool:
        """Whether a preview is due and was not drawn, or not to its end, before the run was stopped."""
        return self.due(step) and not is_complete_png(self.file(step))

    def draw(self, step: int) -> None:
        """Saves sample_num samples by preview_info; of a training on trajectories the first in each of FEW_CALLS."""
        if self.processes.rank:
            return
        names, labels, specs = class_names(self.recipe), self.labels, [self.recipe["preview_info"]]
        count = self.recipe["sample_num"]
        if self.recipe["trajectories"]:
            names, specs, count = FEW_CALLS, FEW_CALLS, min(COLUMNS, count)  # rows are calls, not classes
            labels = torch.arange(len(names)).repeat_interleave(count).tolist()
        with out_of_memory_means(f"a preview draws sample_num={count} pictures at a time: set a smaller sample_num"):
            specs = [SampleSpec.parse(spec) for spec in specs]
            specs = [replace(spec, steps=min(spec.steps, self.recipe["timestep_num"])) for spec in specs]
            x = torch.cat([self.samples(spec, count) for spec in specs])
            if self.stop.signum:
                return
            try:
                save_by_class(x, names, self.file(step), labels)
            except FloatingPointError:
                print(f"no preview of step {step:,}: its samples are not finite, so the training has diverged")

    def samples(self, spec: SampleSpec, count: int) -> Tensor:
        """The first `count` samples; unfinished ones after a signal."""
        shape = picture_shape(self.recipe["image_size"], self.recipe["image_channel"])
        generator = torch.Generator().manual_seed(self.recipe["seed"])
        noise = torch.randn(count, *shape, generator=generator).to(self.diffusion.betas.device)
        labels = torch.tensor(self.labels[:count], device=noise.device) if self.labels else None
        network = with_labels(self.network, labels, usual_guidance(self.recipe), no_label=len(class_names(self.recipe)))
        for frame in sample_progressive(self.diffusion, network, noise, spec, generator):
            x = frame.sample
            if self.stop.signum:
                break
        return x
