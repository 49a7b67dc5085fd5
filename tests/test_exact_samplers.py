"""Samplers on data whose perfect network is known: Gaussian data, and a mixture of Gaussians in the plane."""

import numpy as np
import pytest
import torch
from helpers.samplers import T, randn, seeded
from scipy.integrate import solve_ivp

from diffusion import GaussianDiffusion, SampleNoise, SampleSpec, sample
from diffusion.interpolation import invert
from models import UNet

F64 = {"dtype": torch.float64}
EYE = torch.eye(2, **F64)
MEAN, COVARIANCE = torch.tensor([0.3, -0.2], **F64), torch.tensor([[0.3, 0.1], [0.1, 0.15]], **F64)
CENTRES = torch.tensor([[0.7, 0.3], [-0.6, 0.1], [0.1, -0.8]], **F64)
SHARES, SPREAD = torch.tensor([0.5, 0.3, 0.2], **F64), 0.25
SCHEDULES = ("linear", "cosine")
RANDOM = ("DDPM_{}_0p0", "NaiveDDPM_{}_0p0", "DDIM_{}_0p5", "DDIM_{}_1p0", "DPMpp_{}_1p0")
METHODS = (*RANDOM, "DDIM_{}_0p0", "DPMpp_{}_0p0")


def gaussian_noise(x, ac):
    """E[ε | x_t = x] where x_0 ~ N(MEAN, COVARIANCE): x (B, 2), ac = ᾱ_t."""
    return (1 - ac) ** 0.5 * (x - ac**0.5 * MEAN) @ torch.linalg.inv(ac * COVARIANCE + (1 - ac) * EYE)


def mixture_noise(x, ac):
    """E[ε | x_t = x] where x_0 is a mixture of round Gaussians at CENTRES."""
    variance, away = ac * SPREAD**2 + 1 - ac, x[:, None] - ac**0.5 * CENTRES
    share = torch.softmax(SHARES.log() - away.square().sum(2) / (2 * variance), dim=1)
    return (1 - ac) ** 0.5 * (share[:, :, None] * away).sum(1) / variance


ORACLES = {"gaussian": gaussian_noise, "mixture": mixture_noise}


def sampled(schedule, oracle, method, steps, x_T, seed=3, timestep_num=T):
    """Where x_T (B, 2) ends, of a walk with the perfect network."""
    d = GaussianDiffusion(timestep_num, schedule, clip_denoised=False)
    spec = SampleSpec.parse(method.format(steps))
    model = perfect(d, oracle)
    return sample(d, model, x_T.view(-1, 2, 1, 1), spec, seeded(seed)).view(-1, 2)


def perfect(diffusion, oracle):
    return lambda x, t: ORACLES[oracle](x.flatten(1), diffusion.alphas_cumprod[t[0]].item()).view_as(x)


# --- deterministic methods: the exact answer and the order of their convergence ---


def flow(oracle, x_T, ac):
    """Where the probability flow takes x_T: in y = x / sqrt(ᾱ) and s = sqrt(1 - ᾱ) / sqrt(ᾱ) it is dy/ds = E[ε]
    (Song et al. 2021, eq. 14), from s_T to 0, by an 8th-order Runge-Kutta."""

    def slope(s, y):
        return ORACLES[oracle](torch.from_numpy(y).view(-1, 2) / (1 + s * s) ** 0.5, 1 / (1 + s * s)).numpy().ravel()

    start = (x_T / ac**0.5).numpy().ravel()
    end = solve_ivp(slope, (((1 - ac) / ac) ** 0.5, 0), start, method="DOP853", rtol=1e-9, atol=1e-9).y[:, -1]
    return torch.from_numpy(end).view(-1, 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_flow_of_gaussian_data_is_the_closed_form(schedule):
    """The oracle's own check: the flow moves x along C^½ (ᾱ C + (1 - ᾱ))^{-½}."""
    ac = GaussianDiffusion(T, schedule).alpha_bar(T - 1)
    x_T = randn(50, 2, seed=1)
    values, vectors = torch.linalg.eigh(COVARIANCE)
    scale = vectors @ torch.diag((values / (ac * values + 1 - ac)).sqrt()) @ vectors.T
    # 1e-9 is what the solver was asked for, of values up to 2e4.
    torch.testing.assert_close(flow("gaussian", x_T, ac), MEAN + (x_T - ac**0.5 * MEAN) @ scale, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method, at_most", [("DDIM_{}_0p0", -0.85), ("DPMpp_{}_0p0", -1.7)])
@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_error_falls_with_the_methods_order(schedule, oracle, method, at_most):
    x_T, steps = randn(200, 2, seed=2), [20, 40, 80, 160]
    exact = flow(oracle, x_T, GaussianDiffusion(T, schedule).alpha_bar(T - 1))
    errors = [(sampled(schedule, oracle, method, n, x_T) - exact).square().mean().sqrt().item() for n in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope <= at_most, errors
    assert errors[0] < 0.1, errors  # of data 0.7 wide


@pytest.mark.parametrize("oracle", ORACLES)
def test_ten_second_order_steps_do_what_takes_first_order_more(oracle):
    x_T = randn(500, 2, seed=2)
    exact = flow(oracle, x_T, GaussianDiffusion(T).alpha_bar(T - 1))
    errors = {
        method: (sampled("cosine", oracle, method.format(10), 10, x_T) - exact).square().mean().sqrt().item()
        for method in ("DDIM_10_0p0", "DPMpp_10_0p0")
    }
    assert errors["DPMpp_10_0p0"] < 0.7 * errors["DDIM_10_0p0"]


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inversion_and_back_converges(schedule, oracle):
    """DDIM from held-out data to noise and back: its error falls like 1/S, and the noise is that of the flow."""
    d = GaussianDiffusion(T, schedule, clip_denoised=False)
    model, x_T = perfect(d, oracle), randn(200, 2, seed=2)
    x_start = flow(oracle, x_T, d.alpha_bar(T - 1)).view(-1, 2, 1, 1)  # data, and the noise that belongs to them
    back, there, steps = [], [], [10, 50, 100, 1000]
    for n in steps:
        spec = SampleSpec("DDIM", n, 0.0)
        noise = invert(d, model, x_start, spec, T)
        there.append((noise.view(-1, 2) - x_T).square().mean().sqrt().item())
        back.append((sample(d, model, noise, spec) - x_start).square().mean().sqrt().item())
    for errors in (back, there):
        assert np.polyfit(np.log(steps), np.log(errors), 1)[0] <= -0.85, errors
    assert back[-1] < 0.01  # of data 0.7 wide


# --- random methods: the mean and covariance that the recursion of their own steps gives ---


def moments(schedule, method, steps):
    """Mean and covariance of what the method's steps make of x_T ~ N(0, 1) with the perfect network of Gaussian data.

    Each step is affine in x_t and the last prediction; so (x_t, prediction) stays Gaussian, and the moments of this
    pair go on exactly. The steps are written here as their papers have them.
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
        if spec.method in ("DDPM", "NaiveDDPM"):  # Ho et al. 2020, eq. 6 and 7
            to = ac_prev if spec.method == "DDPM" else ac_of[t - 1]
            beta = 1 - ac / to
            variance = (1 - to) / (1 - ac) * beta
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


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_have_the_moments_of_their_steps(method, schedule, steps):
    x = sampled(schedule, "gaussian", method, steps, randn(20_000, 2, seed=5))
    assert_moments(x, *moments(schedule, method, steps))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", RANDOM)
def test_all_steps_give_the_data(method, schedule):
    mean, cov = moments(schedule, method, T)
    # What is left of the steps' own size: 1.6 % of the variance with the small posterior variance.
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.002)
    torch.testing.assert_close(cov, COVARIANCE, rtol=0.02, atol=0.001)
    mixture_mean = SHARES @ CENTRES
    mixture_cov = CENTRES.T @ torch.diag(SHARES) @ CENTRES - mixture_mean.outer(mixture_mean) + SPREAD**2 * EYE
    x = sampled(schedule, "mixture", method, T, randn(5_000, 2, seed=5))
    # 2 % of the variance as above; a mixture's covariance has about a Gaussian's standard error or less.
    assert_moments(x, mixture_mean, mixture_cov, slack=0.01)


def test_few_steps_with_the_small_variance_are_too_narrow_and_naive_ones_far_too_wide():
    """What people saw who strode so: the noise that NaiveDDPM leaves in, in numbers."""
    width = COVARIANCE.diag().sum()
    narrow, wide = (moments("cosine", method, 50)[1].diag().sum() / width for method in RANDOM[:2])
    assert 0.8 < narrow < 0.97
    assert wide > 2


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", [method for method in METHODS if "Naive" not in method])  # which never gets there
def test_one_step_is_the_expected_x_start(method, schedule, oracle):
    d = GaussianDiffusion(T, schedule)
    x_T, ac = randn(50, 2, seed=5), d.alpha_bar(T - 1)
    expected = (x_T - (1 - ac) ** 0.5 * ORACLES[oracle](x_T, ac)) / ac**0.5
    # 1e-16 times 2e4.
    torch.testing.assert_close(sampled(schedule, oracle, method, 1, x_T), expected, rtol=0, atol=1e-9)


# --- noise sample by sample ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_a_sample_does_not_depend_on_its_batch(method, dtype, apart):
    """A UNet and 64 samples in batches of 64, of 7 and of 1: only roundings may differ, by how a batch is computed."""
    torch.manual_seed(0)
    model = UNet(image_size=8, image_channel=1, model_channels=16, channel_mult=(1, 2), num_heads=2).eval().to(dtype)
    torch.nn.init.normal_(model.out[2].weight, std=0.1)
    d, spec = GaussianDiffusion(T, objective="pred_v"), SampleSpec.parse(method.format(10))

    def drawn(size):
        parts = []
        for i in range(0, 64, size):
            noise = SampleNoise(7, range(i, min(i + size, 64)))
            x_T = noise.draw((min(size, 64 - i), 1, 8, 8), dtype, "cpu")
            parts.append(sample(d, model, x_T, spec, noise))
        return torch.cat(parts)

    together = drawn(64)
    for size in (7, 1):
        torch.testing.assert_close(drawn(size), together, rtol=0, atol=apart)
    assert len({tuple(x) for x in together.flatten(1).tolist()}) == 64


@pytest.mark.parametrize("seed, i", [(5 + 3 * 2**32, 0), (5, 3), (3, 5), (0, 7), (7, 0), (2**40, 1), (0, 0)])
def test_every_seed_and_index_has_noise_of_its_own(seed, i):
    others = [(s, j) for s in (0, 3, 5, 7, 2**40, 5 + 3 * 2**32) for j in range(8) if (s, j) != (seed, i)]
    mine, *rest = (SampleNoise(s, [j]).draw((1, 4), torch.float64, "cpu") for s, j in [(seed, i), *others])
    assert not any(torch.equal(mine, other) for other in rest)


def test_sample_noise_is_standard_normal_and_independent():
    noise = SampleNoise(0, range(300))
    first, second = (noise.draw((300, 1, 10, 10), torch.float32, "cpu") for _ in range(2))
    assert first.dtype == torch.float32
    for x in (first, second):
        # Five standard errors of 30,000 draws.
        assert abs(x.mean()) < 5 / 30_000**0.5 and abs(x.var() - 1) < 5 * (2 / 30_000) ** 0.5
    other = SampleNoise(1, range(300)).draw(first.shape, torch.float32, "cpu")
    for a, b in ((first, second), (first[1:], first[:-1]), (first, other)):
        assert abs((a * b).mean()) < 5 / 29_900**0.5
    assert torch.equal(SampleNoise(0, [7]).draw((1, 1, 10, 10), torch.float32, "cpu")[0], first[7])
    with pytest.raises(ValueError, match="2 samples, .* batch of 3"):
        SampleNoise(0, [0, 1]).draw((3, 1), torch.float32, "cpu")
