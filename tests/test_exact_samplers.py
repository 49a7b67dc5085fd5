"""Samplers on data whose perfect network is known: Gaussian data, and a mixture of Gaussians in the plane."""

from functools import cache
from itertools import cycle

import numpy as np
import pytest
import torch
from helpers.samplers import (
    CENTRES,
    COVARIANCE,
    EYE,
    F64,
    MEAN,
    METHODS,
    ORACLES,
    SHARES,
    SPREAD,
    T,
    all_pairs,
    flow,
    perfect,
    randn,
    rms_error,
    sampled,
    with_slow,
)
from scipy.integrate import quad

from diffusion import GaussianDiffusion, SampleSpec, sample
from diffusion.interpolation import invert
from diffusion.samplers import Frame, corrected

SCHEDULES = ("linear", "cosine")
RANDOM = ("DDPM_{}_0p0", "NaiveDDPM_{}_0p0", "DDIM_{}_0p5", "DDIM_{}_1p0", "DPMpp_{}_1p0", "DDPMlarge_{}_0p0")

# --- deterministic methods: the exact answer and the order of their convergence ---

X_T = randn(200, 2, seed=2)


@cache
def exact(schedule, oracle):
    """Where the probability flow takes X_T."""
    return flow(oracle, X_T, GaussianDiffusion(T, schedule).alpha_bar(T - 1))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_flow_of_gaussian_data_is_the_closed_form(schedule):
    """A check of these tests themselves: the flow moves x along C^½ (ᾱ C + (1 - ᾱ))^{-½}."""
    ac = GaussianDiffusion(T, schedule).alpha_bar(T - 1)
    values, vectors = torch.linalg.eigh(COVARIANCE)
    scale = vectors @ torch.diag((values / (ac * values + 1 - ac)).sqrt()) @ vectors.T
    expected = MEAN + (X_T - ac**0.5 * MEAN) @ scale
    # The solver's tolerance is 1e-9, relative to values up to 2e4.
    torch.testing.assert_close(exact(schedule, "gaussian"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method, at_most", [("DDIM_{}_0p0", -0.85), ("DPMpp_{}_0p0", -1.7), ("UniPC_{}_0p0", -1.5)])
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_falls_with_the_methods_order(schedule, oracle, method, at_most):
    steps = [20, 40, 80, 160]
    errors = [rms_error(sampled(schedule, oracle, method, n, X_T), exact(schedule, oracle)) for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope <= at_most, errors
    assert errors[0] < 0.1, errors  # of data 0.7 wide


@pytest.mark.parametrize("oracle", ORACLES)
def test_ten_steps_of_second_order_have_a_smaller_error_than_ten_of_first_order(oracle):
    first, *second = (
        rms_error(sampled("cosine", oracle, method, 10, X_T), exact("cosine", oracle))
        for method in ("DDIM_{}_0p0", "DPMpp_{}_0p0", "UniPC_{}_0p0")
    )
    assert max(second) < 0.7 * first


@pytest.mark.parametrize("times", [(999, 950, 900), (700, 300, 1), (900, 500, 499)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_unipc_corrects_by_the_weighted_mean_of_the_parabola(schedule, times):
    """Numerical integration of e^λ m(λ) over the step, for a known parabola m, or a line without a step before."""
    d = GaussianDiffusion(T, schedule)
    before, start, end = (d.log_snr(t) / 2 for t in times)
    for m in (np.poly1d([0.2, -0.5, 0.3]), np.poly1d([-0.5, 0.3])):
        area, _ = quad(lambda x: np.exp(x - end) * m(x), start, end)  # noqa: B023
        weight, _ = quad(lambda x: np.exp(x - end), start, end)
        known = [Frame(t, None, torch.tensor(m(x), **F64)) for t, x in zip(times, (before, start), strict=False)]
        x_end = torch.tensor(m(end), **F64)
        assert corrected(d, times[-1], x_end, *known[::-1][: m.order]).item() == pytest.approx(area / weight, rel=1e-7)


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inversion_and_back_converges(schedule, oracle):
    """DDIM from data to noise and back: both errors fall like 1/S, and the noise is that of the flow."""
    d = GaussianDiffusion(T, schedule, clip_denoised=False)
    model = perfect(d, oracle)
    x_start = exact(schedule, oracle).view(-1, 2, 1, 1)  # data, and X_T is the noise that belongs to them
    back, there, steps = [], [], [10, 50, 100, 500]
    for n in steps:
        spec = SampleSpec("DDIM", n, 0.0)
        noise = invert(d, model, x_start, spec, T)
        there.append(rms_error(noise.view(-1, 2), X_T))
        back.append(rms_error(sample(d, model, noise, spec), x_start))
    for errors in (back, there):
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] <= -0.85, errors
    assert back[-1] < 0.01  # of data 0.7 wide


# --- random methods: the mean and covariance that the recursion of their own steps gives ---


@cache
def moments(schedule, method, steps):
    """Mean and covariance of what the method's steps make of x_T ~ N(0, 1) with the perfect network of Gaussian data.

    Each step is affine in x_t and the last prediction. So (x_t, prediction) stays Gaussian, and its moments follow
    exactly. The steps are written here as in their papers.
    """
    d = GaussianDiffusion(T, schedule)
    spec = SampleSpec.parse(method.format(steps))
    timesteps = [-1, *spec.timesteps(T)]
    ac_of = {t: d.alphas_cumprod[t].item() for t in range(T)} | {-1: 1.0}
    mean, cov = torch.zeros(4, **F64), torch.block_diag(EYE, 0 * EYE)  # of x_t and of the last predicted x_start
    h_last = None
    for t, t_prev in zip(timesteps[:0:-1], timesteps[-2::-1], strict=True):
        ac, ac_prev = ac_of[t], ac_of[t_prev]
        gain = ac**0.5 * COVARIANCE @ torch.linalg.inv(ac * COVARIANCE + (1 - ac) * EYE)  # E[x_0 | x_t] = gain x_t + …
        offset = MEAN - gain @ (ac**0.5 * MEAN)
        of_last = 0.0
        if "DDPM" in spec.method:  # Ho et al. 2020, eq. 6 and 7
            to = ac_of[t - 1] if spec.method == "NaiveDDPM" else ac_prev
            beta = 1 - ac / to
            variance = beta if spec.method == "DDPMlarge" and t_prev >= 0 else (1 - to) / (1 - ac) * beta
            of_x, of_x_start = (1 - beta) ** 0.5 * (1 - to) / (1 - ac), to**0.5 * beta / (1 - ac)
        elif spec.method == "DDIM":  # Song et al. 2021, eq. 12 and 16
            variance = spec.eta**2 * (1 - ac_prev) / (1 - ac) * (1 - ac / ac_prev)
            of_x = max(0, 1 - ac_prev - variance) ** 0.5 / (1 - ac) ** 0.5
            of_x_start = ac_prev**0.5 - of_x * ac**0.5
        elif t_prev == -1:
            variance, of_x, of_x_start = 0.0, 0.0, 1.0
        else:  # Lu et al. 2022b, SDE-DPM-Solver++(2M)
            h = 0.5 * np.log(ac_prev / (1 - ac_prev)) - 0.5 * np.log(ac / (1 - ac))
            variance = (1 - ac_prev) * (1 - np.exp(-2 * h))
            of_x = ((1 - ac_prev) / (1 - ac)) ** 0.5 * np.exp(-h)
            of_x_start = ac_prev**0.5 * (1 - np.exp(-2 * h))
            of_last = 0.0 if h_last is None else of_x_start * h / (2 * h_last)
            h_last = h
        now = of_x_start + of_last  # x_start + (h / 2 h_last) (x_start - last)
        top = torch.cat([of_x * EYE + now * gain, -of_last * EYE], dim=1)
        step = torch.cat([top, torch.cat([gain, 0 * EYE], dim=1)])
        mean = step @ mean + torch.cat([now * offset, offset])
        cov = step @ cov @ step.T + torch.block_diag(variance * EYE, 0 * EYE)
    return mean[:2], cov[:2, :2]


def assert_moments(x, mean, cov, slack=0.0):
    """The mean and covariance of n points, each within five of its standard errors (and some slack)."""
    n = len(x)
    assert ((x.mean(0) - mean).abs() <= 5 * (cov.diag() / n).sqrt() + slack).all(), (x.mean(0), mean)
    error = ((cov.diag()[:, None] * cov.diag() + cov.square()) / n).sqrt()  # of a Gaussian's sample covariance
    assert ((x.T.cov() - cov).abs() <= 5 * error + slack).all(), (x.T.cov(), cov)


@pytest.mark.parametrize(
    "method, steps, schedule", with_slow(200, all_pairs(RANDOM, [1, 2, 3, 10, 50, 200], SCHEDULES))
)
def test_random_methods_have_the_moments_of_their_steps(method, steps, schedule):
    """20,000 points: five standard errors are 3.5 % of a standard deviation, and 5 % of a variance."""
    x = sampled(schedule, "gaussian", method, steps, randn(20_000, 2, seed=5))
    assert_moments(x, *moments(schedule, method, steps))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", RANDOM)
def test_all_steps_have_the_moments_of_the_data(method, schedule):
    mean, cov = moments(schedule, method, T)
    # What is left by the size of the steps: 1.6 % of the variance with the small posterior variance.
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.002)
    torch.testing.assert_close(cov, COVARIANCE, rtol=0.02, atol=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("method, schedule", zip(("DDPM_{}_0p0", *RANDOM[2:]), cycle(SCHEDULES), strict=False))
def test_all_steps_sample_the_data(method, schedule):
    """5,000 points of the mixture: five standard errors are 7 % of a standard deviation, and 10 % of a variance.

    (With all steps NaiveDDPM is DDPM, which test_samplers.py proves. Gaussian data are tested above.)
    """
    x = sampled(schedule, "mixture", method, T, randn(5_000, 2, seed=5))
    mean = SHARES @ CENTRES
    cov = CENTRES.T @ torch.diag(SHARES) @ CENTRES - mean.outer(mean) + SPREAD**2 * EYE
    # 2 % of the variance as above; a mixture's covariance has about a Gaussian's standard error or less.
    assert_moments(x, mean, cov, slack=0.01)


def test_few_ddpm_steps_are_too_narrow_and_few_naive_steps_far_too_wide():
    """The noise that NaiveDDPM leaves in the samples, in numbers."""
    width = COVARIANCE.diag().sum()
    narrow, wide = (moments("cosine", method, 50)[1].diag().sum() / width for method in RANDOM[:2])
    assert 0.8 < narrow < 0.97
    assert wide > 2


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", [*METHODS[:2], *RANDOM[2:], *METHODS[4::2]])  # not the naive one
def test_one_step_returns_the_expected_x_start(method, schedule, oracle):
    ac = GaussianDiffusion(T, schedule).alpha_bar(T - 1)
    expected = (X_T - (1 - ac) ** 0.5 * ORACLES[oracle](X_T, ac)) / ac**0.5
    # 1e-16 times 2e4.
    torch.testing.assert_close(sampled(schedule, oracle, method, 1, X_T), expected, rtol=0, atol=1e-9)
