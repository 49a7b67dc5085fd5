"""Bits per dimension: the decoder, and Gaussian data in the plane, where every term of the bound is known."""

import math

import numpy as np
import pytest
import torch
from helpers.samplers import COVARIANCE, EYE, F64, MEAN, SCHEDULES, network, perfect, randn
from scipy.stats import norm

from datasets import normalize
from diffusion import VARIANCES, GaussianDiffusion, SampleNoise, SampleSpec, bound_terms, predictions
from diffusion.likelihood import decoder

LEVELS = torch.arange(256, **F64) / 127.5 - 1


# --- the decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [1e-4, 0.003, 0.006, 0.1, 2.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, -0.2, 0.0, 0.5, 0.9999, 1.3])
def test_the_levels_have_the_probability_1_together(mean, deviation):
    logs = decoder(normalize(torch.arange(256)), torch.full_like(LEVELS, mean), deviation)
    assert logs.isfinite().all() and logs.exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_a_level_has_the_probability_of_its_bin_and_the_outer_bins_are_open():
    mean, deviation = 0.31, 0.02
    edges = np.array([-np.inf, *((LEVELS[:-1] + LEVELS[1:]) / 2).tolist(), np.inf])
    expected = np.diff(norm.cdf(edges, mean, deviation))
    found = decoder(LEVELS, torch.full_like(LEVELS, mean), deviation).exp()
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-15)


def test_far_levels_keep_their_digits():
    """40 deviations away, where the cumulative distribution itself is 0 in float64; and symmetric."""
    low, high = (decoder(LEVELS[[i]], -0.2 * side * torch.ones(1), 0.03) for i, side in ((255, 1), (0, -1)))
    assert low.item() == pytest.approx(norm.logsf((1 - 1 / 255 + 0.2) / 0.03), rel=1e-6)
    assert high.item() == pytest.approx(low.item(), rel=1e-6)


# --- the bound --------------------------------------------------------------------------------------------------------


def terms_by_variance(d, model, x_start, spec, noise=None):
    """All terms, (N, S + 1), of each variance, as evaluate --bits computes them."""
    steps = list(predictions(d, model, x_start, spec, noise))
    errors = torch.stack([(x - x_start).square().flatten(1).mean(1).double() for x in steps], 1)
    return {variance: bound_terms(d, spec, x_start, errors, steps[-1], variance) for variance in VARIANCES}


def terms_of(*args, **keywords):
    return terms_by_variance(*args, **keywords)["small"]


def hermite(count):
    """Points and weights of two independent standard normal numbers: sums over them are exact for polynomials."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    grid = np.stack(np.meshgrid(points, points), -1).reshape(-1, 2)
    return torch.from_numpy(grid), torch.from_numpy(np.outer(weights, weights).ravel() / (2 * np.pi))


def analytic(diffusion, spec, x_start):
    """The expected terms in nats of one point x_start (2,), written as in Ho et al. 2020, eq. 5 to 7."""
    timesteps = [-1, *spec.timesteps(diffusion.timestep_num)]
    ac_of = {t: diffusion.alphas_cumprod[t].item() for t in timesteps[1:]} | {-1: 1.0}
    ac, terms = ac_of[timesteps[-1]], []
    prior = torch.distributions.Normal(ac**0.5 * x_start, (1 - ac) ** 0.5)
    terms.append(torch.distributions.kl_divergence(prior, torch.distributions.Normal(torch.zeros(2, **F64), 1.0)).sum())
    for t, s in zip(timesteps[:1:-1], timesteps[-2:0:-1], strict=True):
        ac, ac_s = ac_of[t], ac_of[s]
        beta = 1 - ac / ac_s
        gain = ac**0.5 * COVARIANCE @ torch.linalg.inv(ac * COVARIANCE + (1 - ac) * EYE)
        offset = x_start - MEAN - ac**0.5 * gain @ (x_start - MEAN)  # x_0 - E[x_0 | x_t], without the noise in x_t
        squares = offset.square().sum() + (1 - ac) * gain.square().sum()
        between_means = (ac_s**0.5 * beta / (1 - ac)) ** 2 * squares
        terms.append(between_means / (2 * (1 - ac_s) / (1 - ac) * beta))
    return torch.stack(terms)


def decoder_by_quadrature(diffusion, spec, x_start):
    """The last term in nats: the noise of both coordinates by Gauss-Hermite, the bin by SciPy."""
    t, t_next = spec.timesteps(diffusion.timestep_num)[:2]
    ac, ac_next = diffusion.alpha_bar(t), diffusion.alpha_bar(t_next)
    deviation = ((1 - ac) / (1 - ac_next) * (1 - ac_next / ac)) ** 0.5
    points, weights = hermite(60)
    gain = ac**0.5 * COVARIANCE @ torch.linalg.inv(ac * COVARIANCE + (1 - ac) * EYE)
    mean = MEAN + (ac**0.5 * (x_start - MEAN) + (1 - ac) ** 0.5 * points) @ gain.T
    ends = (x_start - 1 / 255 - mean) / deviation, (x_start + 1 / 255 - mean) / deviation
    below, above = (np.array([f(end) for end in ends]) for f in (norm.logcdf, norm.logsf))  # each exact in its tail
    with np.errstate(divide="ignore"):
        lower, upper = (a + np.log1p(-np.exp(b - a)) for a, b in ((below[1], below[0]), (above[0], above[1])))
    inside = np.where(ends[0] < 0, lower, upper)
    return -(weights * torch.from_numpy(inside).sum(1)).sum()


@pytest.mark.parametrize("steps", [2, 50, 200])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_gaussian_model_has_the_analytic_bound(schedule, steps, monkeypatch):
    """The exact score, and an average over the noise by quadrature in place of random draws."""
    d, spec = GaussianDiffusion(1000, schedule, clip_denoised=False), SampleSpec("DDPM", steps, 0.0)
    points, weights = hermite(60)
    x_start = LEVELS[[150, 90]]
    monkeypatch.setattr("diffusion.likelihood.randn_like", lambda x, generator: points.view_as(x))
    given = x_start.view(1, 2, 1, 1).expand(len(points), -1, -1, -1)
    found = weights @ terms_of(d, perfect(d, "gaussian"), given, spec)
    expected = torch.cat([analytic(d, spec, x_start), decoder_by_quadrature(d, spec, x_start)[None]]) / math.log(4)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert found.sum().item() == pytest.approx(expected.sum().item(), abs=1e-6)


@pytest.mark.parametrize("steps", [2, 50])
@pytest.mark.parametrize("variance", VARIANCES)
def test_a_step_has_the_divergence_of_two_gaussians_and_the_variance_of_its_name(variance, steps):
    """By torch's own divergence. Errors are made up: those of picture i are i + 1 at all steps."""
    d, spec, x_start = GaussianDiffusion(1000), SampleSpec("DDPM", steps, 0.0), LEVELS[[150, 90, 7]].view(3, 1, 1, 1)
    errors = torch.tensor([1.0, 2.0, 3.0], **F64)
    found = bound_terms(d, spec, x_start, errors[:, None].expand(3, steps), x_start, variance)[:, 1:-1]
    timesteps = spec.timesteps(1000)[::-1]
    for k, (t, s) in enumerate(zip(timesteps, timesteps[1:], strict=False)):
        ac, ac_s = d.alpha_bar(t), d.alpha_bar(s)
        beta = 1 - ac / ac_s
        small, factor = (1 - ac_s) / (1 - ac) * beta, ac_s**0.5 * beta / (1 - ac)
        of_others = torch.tensor([2.5, 2.0, 1.5], **F64)
        chosen = {"small": small, "large": beta, "best": small + factor**2 * of_others}[variance]
        q = torch.distributions.Normal(factor * errors.sqrt(), small**0.5)
        p = torch.distributions.Normal(torch.zeros(3, **F64), torch.as_tensor(chosen, **F64).expand(3) ** 0.5)
        expected = torch.distributions.kl_divergence(q, p) / math.log(2)
        torch.testing.assert_close(found[:, k], expected, rtol=1e-6, atol=1e-12)  # differences of nearly equal numbers


@pytest.mark.parametrize("schedule, steps", [("cosine", 5), ("linear", 20), ("cosine", 100)])
def test_the_best_variance_reaches_the_entropy_in_any_number_of_steps(schedule, steps):
    """Independent normal pixels of standard deviation 1/4, rounded to 8 bits, and the exact network.

    Each step of the model is then the true one, which is Gaussian with a single variance, so the bound is tight. Left
    are the error of the draws, of which four standard errors are allowed, and less than 0.001 bits because the bin of
    a level is not the noise's. The other two variances lose at least 0.1 bits.
    """
    d, spec, pixels = GaussianDiffusion(1000, schedule, objective="pred_x0"), SampleSpec("DDPM", steps, 0.0), 1 / 4
    x = LEVELS[((randn(400, 1, 8, 8, seed=0) * pixels + 1) * 127.5).round().long().clamp(0, 255)]

    def model(x, t):
        ac = d.alpha_bar(t[0].item())
        return ac**0.5 * pixels**2 / (ac * pixels**2 + 1 - ac) * x

    edges = np.array([-np.inf, *((LEVELS[:-1] + LEVELS[1:]) / 2).tolist(), np.inf])
    logs = -np.log2(np.diff(norm.cdf(edges, 0, pixels)))
    exact = torch.from_numpy(logs)[((x + 1) * 127.5).round().long()].flatten(1).mean(1)
    terms = terms_by_variance(d, model, x, spec, SampleNoise(0, range(400)))
    gaps = {v: of_variance.sum(1) - exact for v, of_variance in terms.items()}
    gap, error = gaps["best"].mean().item(), gaps["best"].std().item() / 400**0.5
    assert abs(gap) < 4 * error + 0.001 and error < 0.011, (gap, error)
    assert gaps["small"].mean() > 0.1 and gaps["large"].mean() > 0.1


@pytest.mark.slow
def test_the_bound_is_above_the_entropy():
    """Points of a correlated Gaussian in bins of 8 bits: their entropy is that of the density, in units of the bin.

    With the small variance the steps nearest to the picture lose most: it is exact for one picture, and half of what it
    should be for pictures that vary by more than the noise of these steps. With the best one only the correlation is
    lost that is left in such a step.
    """
    d, spec = GaussianDiffusion(1000, "cosine", clip_denoised=False), SampleSpec("DDPM", 1000, 0.0)
    x = MEAN + 0.3 * randn(1000, 2, seed=0) @ torch.linalg.cholesky(COVARIANCE).T  # narrow: none beyond [-1, 1]
    assert x.abs().max() < 1
    x_start = LEVELS[((x + 1) * 127.5).round().long()].view(-1, 2, 1, 1)
    cov = 0.09 * COVARIANCE

    def model(x, t):
        ac = d.alpha_bar(t[0].item())
        inverse = torch.linalg.inv(ac * cov + (1 - ac) * EYE)
        return ((1 - ac) ** 0.5 * (x.flatten(1) - ac**0.5 * MEAN) @ inverse).view_as(x)

    density = torch.distributions.MultivariateNormal(MEAN, cov)
    exact = -(density.log_prob(x_start.view(-1, 2)) + 2 * math.log(2 / 255)) / math.log(4)
    terms = terms_by_variance(d, model, x_start, spec, SampleNoise(0, range(1000)))
    gaps = {v: of_variance.sum(1) - exact for v, of_variance in terms.items()}
    errors = {v: gap.std().item() / 1000**0.5 for v, gap in gaps.items()}
    gaps = {v: gap.mean().item() for v, gap in gaps.items()}
    assert 3 * errors["small"] < gaps["small"] < 0.8, (gaps, errors)
    assert -3 * errors["best"] < gaps["best"] < 0.1 and gaps["best"] < gaps["large"], (gaps, errors)


def test_clipping_lowers_the_bound_and_a_worse_network_raises_it():
    x_start = LEVELS[torch.randint(256, (20, 1, 4, 4), generator=torch.Generator().manual_seed(0))]

    def bits(model, clip):
        d = GaussianDiffusion(1000, objective="pred_x0", clip_denoised=clip)
        spec = SampleSpec("DDPM", 20, 0.0)
        return terms_of(d, model, x_start, spec, noise=SampleNoise(0, range(20))).sum(1).mean().item()

    assert bits(network, True) < bits(network, False)
    assert bits(lambda x, t: x_start, True) < bits(lambda x, t: 0.9 * x_start, True) < bits(network, True)


def test_it_does_not_depend_on_the_batch_and_only_ddpm_has_a_bound():
    x_start, d = LEVELS[torch.arange(48).view(3, 1, 4, 4)], GaussianDiffusion(1000)
    whole, alone = (
        terms_of(d, network, x, SampleSpec("DDPM", 5, 0.0), noise=SampleNoise(7, which))
        for x, which in ((x_start, range(3)), (x_start[1:2], [1]))
    )
    assert whole.shape == (3, 6) and torch.equal(whole[1:2], alone)
    for spec in ("DDIM_50_0p0", "NaiveDDPM_50_0p0", "DDPM_1_0p0"):
        with pytest.raises(ValueError, match=f"DDPM in at least 2 steps, such as DDPM_1000_0p0, and not of {spec}"):
            next(predictions(d, network, x_start, SampleSpec.parse(spec)))
