"""Gaussian diffusion: noise schedules, training losses and samplers. No files, no optimizer, no network."""

from diffusion.gaussian import GaussianDiffusion
from diffusion.inpainting import repaint
from diffusion.interpolation import EDIT_MODES, INTERP_MODES, edit, interpolate, invert
from diffusion.likelihood import VARIANCES, bound_terms, predictions
from diffusion.noise import SampleNoise
from diffusion.samplers import SAMPLERS, Frame
from diffusion.sampling import sample, sample_progressive
from diffusion.spec import SampleSpec, SpecError

__all__ = [
    "EDIT_MODES", "INTERP_MODES", "SAMPLERS", "VARIANCES", "Frame", "GaussianDiffusion", "SampleNoise", "SampleSpec",
    "SpecError", "bound_terms", "edit", "interpolate", "invert", "predictions", "repaint", "sample",
    "sample_progressive",
]  # fmt: skip
