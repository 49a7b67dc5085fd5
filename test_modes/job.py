"""What every mode gets: the network, what is asked of it, and how its files are called."""

import os
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from diffusion import SampleSpec
from runs.run import Run


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

    def path(self, of: SampleSpec | str, what: str = "", guidance: float = 1.0) -> Path:
        """<save_dir>/<time>_seed<seed>_<model>_<of>_guidance<guidance>_<what>.png, guidance only where it is not 1.

        of: a sampler, or what is drawn. Of a long <model> the beginning: with all the others in it, file systems hold
        names of 255 bytes.
        """
        model = os.fsencode(self.args.model_path.stem)[:120].decode(errors="ignore")
        guided = f"_guidance{guidance}".removesuffix(".0").replace(".", "p") * (guidance != 1)
        name = f"{self.stem}_{model}_{of}{guided}{'_' * bool(what)}{what}.png"
        return self.args.save_dir / name
