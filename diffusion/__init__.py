"""Gaussian diffusion: schedules, losses and samplers. No pictures on disk, no optimizer, no network of its own."""

from diffusion.gaussian import GaussianDiffusion
from diffusion.interpolation import interpolate
from diffusion.sampling import Frame, SampleSpec

__all__ = ["Frame", "GaussianDiffusion", "SampleSpec", "interpolate"]
