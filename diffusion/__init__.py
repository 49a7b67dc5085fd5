"""Gaussian diffusion: noise schedules, training losses and samplers. No files, no optimizer, no network."""

from diffusion.gaussian import GaussianDiffusion
from diffusion.inpainting import repaint
from diffusion.interpolation import INTERP_MODES, interpolate, invert
from diffusion.likelihood import bound_terms
from diffusion.noise import SampleNoise
from diffusion.sampling import SAMPLERS, Frame, SampleSpec, sample, sample_progressive

__all__ = [
    "INTERP_MODES", "SAMPLERS", "Frame", "GaussianDiffusion", "SampleNoise", "SampleSpec", "bound_terms",
    "interpolate", "invert", "repaint", "sample", "sample_progressive",
]  # fmt: skip
