"""How to sample, as a text: METHOD_STEPS_ETA, such as DDIM_50_0p0."""

import re
from dataclasses import dataclass

from diffusion.samplers import SAMPLERS

GRAMMAR = (
    "METHOD_STEPS_ETA, such as DDPM_1000_0p0 or DDIM_50_0p0 "
    f"(methods: {', '.join(SAMPLERS)}; steps: 1 or more; eta: 0p0 to 1p0, at most three decimals; optionally _quad)"
)


class SpecError(ValueError):
    """A sampler that cannot do what is asked for."""


@dataclass(frozen=True)
class SampleSpec:
    """How to sample. "DDIM_50_0p0", or ddim_50_0.0 or DDIM_50 for short, means DDIM, 50 steps, eta 0.0.

    method: a key of SAMPLERS.
    eta: scales the standard deviation of the fresh noise, from 0 (none) to 1 (as much as DDPM; Song et al. 2021,
        eq. 16). Only the methods in USES_ETA use it.
    quad: quadratic timesteps, denser near x_0 (Song et al. 2021, appendix D.2), written "DDIM_50_0p0_quad".
    """

    method: str
    steps: int
    eta: float
    quad: bool = False

    @classmethod
    def parse(cls, text: str) -> "SampleSpec":
        """Reads METHOD_STEPS_ETA. Raises ValueError, which shows the grammar."""
        grammar = rf"({'|'.join(SAMPLERS)})_([1-9]\d{{0,5}})(?:_([01](?:[p.]\d{{1,3}})?))?(_quad)?"
        match = re.fullmatch(grammar, text, re.IGNORECASE | re.ASCII)
        eta = float((match and match[3] or "0").lower().replace("p", "."))
        if not match or eta > 1:
            raise ValueError(f"sample_info {text!r} is not {GRAMMAR}")
        method = next(name for name in SAMPLERS if name.lower() == match[1].lower())
        return cls(method, int(match[2]), eta, bool(match[4]))

    def __str__(self) -> str:
        return f"{self.method}_{self.steps}_{self.eta}".replace(".", "p") + "_quad" * self.quad

    def timesteps(self, depth: int) -> list[int]:
        """The timesteps to visit in `depth` training timesteps, ascending; the last one is depth - 1.

        Evenly spaced: linspace(-1, depth - 1, steps + 1) rounded down, without the -1, in exact integers.
        Quadratic: depth (k / steps)² - 1 rounded up, for k = 1 … steps, made distinct.
        Raises ValueError if there are fewer timesteps than steps.
        """
        S = self.steps
        if depth < S:
            raise ValueError(f"{self} asks for {S} steps, but there are only {depth} timesteps")
        if self.quad:
            return [max(k, -(-k * k * depth // (S * S))) - 1 for k in range(1, S + 1)]
        return [k * depth // S - 1 for k in range(1, S + 1)]
