"""What the tests of the samplers share: networks, noise, walks, and data whose perfect network is known."""

from itertools import combinations, product

import pytest
import torch
from scipy.integrate import solve_ivp

from diffusion import GaussianDiffusion, SampleSpec, sample, sample_progressive

T = 1000
F64 = {"dtype": torch.float64}
SCHEDULES = ("linear", "cosine", "flow")
OBJECTIVES = ("pred_noise", "pred_x0", "pred_v", "pred_flow")
METHODS = ("DDPM_{}_0p0", "DDIM_{}_0p0", "DDIM_{}_0p5", "DDIM_{}_1p0", "DPMpp_{}_0p0", "DPMpp_{}_1p0", "UniPC_{}_0p0")
NAIVE = "NaiveDDPM_{}_0p0"


def all_pairs(first, second, *others):
    """Combinations in which any two values of two different settings occur together at least once.

    Every value of `first` with every value of `second`; the other settings take their values in turn.
    """
    numbered = product(enumerate(first), enumerate(second))
    cases = [(a, b, *(values[(i + j) % len(values)] for values in others)) for (i, a), (j, b) in numbered]
    for one, two in combinations(range(2 + len(others)), 2):
        settings = (first, second, *others)
        assert {(case[one], case[two]) for case in cases} == set(product(settings[one], settings[two]))
    return cases


def with_slow(value, cases):
    """The cases, with those that have this value marked as slow."""
    return [pytest.param(*case, marks=pytest.mark.slow) if value in case else case for case in cases]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed):
    return torch.randn(shape, generator=seeded(seed), **F64)


def target_of(objective, x_start, noise, ac):
    """What a network should predict, in the formulas of the papers. ac: ᾱ of the pictures."""
    return {
        "pred_noise": noise,
        "pred_x0": x_start,
        "pred_v": ac**0.5 * noise - (1 - ac) ** 0.5 * x_start,  # Salimans & Ho 2022
        "pred_flow": noise - x_start,  # Liu et al. 2022, with time from the picture to the noise
    }[objective]


# --- fixed networks ---

X_T = randn(2, 1, 4, 4, seed=1)
WEIGHT = randn(16, 16, seed=2) / 4


def network(x, t):
    """Stands for a trained network: a fixed function of x and t, some of whose predictions must be clipped."""
    hidden = x.flatten(1) @ WEIGHT.to(x.dtype) + torch.cos(t / 100)[:, None]
    return 1.5 * torch.tanh(hidden).to(x.dtype).view_as(x)


def knows(x_start, diffusion):
    """The perfect network of a data set with one picture: the noise that leads from it to x."""

    def model(x, t):
        ac = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (x - ac.sqrt() * x_start) / (1 - ac).sqrt()

    return model


def walk(diffusion, method, steps, model=network, noise=X_T, seed=3, **keywords):
    """All frames of a sampler."""
    spec = SampleSpec.parse(method.format(steps))
    return list(sample_progressive(diffusion, model, noise, spec, generator=seeded(seed), **keywords))


# --- points in the plane, from a Gaussian or from a mixture of Gaussians ---

EYE = torch.eye(2, **F64)
MEAN, COVARIANCE = torch.tensor([0.3, -0.2], **F64), torch.tensor([[0.3, 0.1], [0.1, 0.15]], **F64)
CENTRES = torch.tensor([[0.7, 0.3], [-0.6, 0.1], [0.1, -0.8]], **F64)
SHARES, SPREAD = torch.tensor([0.5, 0.3, 0.2], **F64), 0.25


def gaussian_noise(x, ac):
    """E[ε | x_t = x] where x_0 ~ N(MEAN, COVARIANCE): x (B, 2), ac = ᾱ_t."""
    return (1 - ac) ** 0.5 * (x - ac**0.5 * MEAN) @ torch.linalg.inv(ac * COVARIANCE + (1 - ac) * EYE)


def mixture_noise(x, ac):
    """E[ε | x_t = x] where x_0 is a mixture of round Gaussians at CENTRES."""
    variance, centres = ac * SPREAD**2 + 1 - ac, ac**0.5 * CENTRES
    share = torch.softmax(SHARES.log() + (x @ centres.T - centres.square().sum(1) / 2) / variance, dim=1)
    return (1 - ac) ** 0.5 * (x - share @ centres) / variance


ORACLES = {"gaussian": gaussian_noise, "mixture": mixture_noise}


def perfect(diffusion, oracle):
    """The network that predicts E[ε | x_t] of this data."""
    return lambda x, t: ORACLES[oracle](x.flatten(1), diffusion.alphas_cumprod[t[0]].item()).view_as(x)


def sampled(schedule, oracle, method, steps, x_T, seed=3):
    """Where a sampler with the perfect network takes x_T (B, 2)."""
    d = GaussianDiffusion(T, schedule, clip_denoised=False)
    spec = SampleSpec.parse(method.format(steps))
    return sample(d, perfect(d, oracle), x_T.view(-1, 2, 1, 1), spec, seeded(seed)).view(-1, 2)


def flow(oracle, x_T, ac):
    """Where the probability flow takes x_T: in y = x / sqrt(ᾱ) and s = sqrt(1 - ᾱ) / sqrt(ᾱ) it is dy/ds = E[ε]
    (Song et al. 2021, eq. 14), from s_T to 0, by an 8th-order Runge-Kutta."""

    def slope(s, y):
        return ORACLES[oracle](torch.from_numpy(y).view(-1, 2) / (1 + s * s) ** 0.5, 1 / (1 + s * s)).numpy().ravel()

    start = (x_T / ac**0.5).numpy().ravel()
    end = solve_ivp(slope, (((1 - ac) / ac) ** 0.5, 0), start, method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    return torch.from_numpy(end).view(-1, 2)


def rms_error(x, exact):
    return (x - exact).square().mean().sqrt().item()
