"""Gaussian diffusion: schedules, losses and samplers. No pictures on disk, no optimizer, no network of its own."""

from diffusion.gaussian import GaussianDiffusion
from diffusion.interpolation import INTERP_MODES, interpolate, invert
from diffusion.noise import SampleNoise
from diffusion.sampling import Frame, SampleSpec

__all__ = ["INTERP_MODES", "Frame", "GaussianDiffusion", "SampleNoise", "SampleSpec", "interpolate", "invert"]
