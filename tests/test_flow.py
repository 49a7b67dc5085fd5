"""Flow matching as this diffusion in other units, the densities of timesteps, and betas that are given."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers.samplers import METHODS, X_T, T, network, randn, seeded, target_of, walk
from scipy.stats import norm

from diffusion import GaussianDiffusion, SampleSpec, bound_terms, edit, interpolate, predictions, repaint
from diffusion.noise import SampleNoise

FLOW = GaussianDiffusion(T, "flow", objective="pred_flow", clip_denoised=False)
A, SIGMA = FLOW.alphas_cumprod.sqrt(), (1 - FLOW.alphas_cumprod).sqrt()
TIME = SIGMA / (A + SIGMA)  # of the flow: x_t / (a + σ) = (1 - τ) x_0 + τ ε


def test_the_schedule_is_that_of_rectified_flow():
    scheduler = FlowMatchEulerDiscreteScheduler(T)
    theirs = scheduler.sigmas.flip(0).double()  # in float32, which rounds by 6e-8
    torch.testing.assert_close(TIME[:-1], theirs[:-1], rtol=1e-7, atol=0)
    assert theirs[-1] == 1 and 1 - 4e-5 < TIME[-1] < 1  # the cap of the last beta leaves a = 3e-5
    x_start, noise, t = randn(5, 1, 4, 4, seed=1), randn(5, 1, 4, 4, seed=2), torch.tensor([0, 1, 300, 700, 998])
    z = FLOW.q_sample(x_start, t, noise) / (A + SIGMA)[t].view(-1, 1, 1, 1)
    theirs = scheduler.scale_noise(x_start, (t + 1).float(), noise)
    torch.testing.assert_close(z, theirs, rtol=0, atol=1e-6)  # sigmas in float32, times values up to 4


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_eulers_method_on_the_flow_is_ddim(steps):
    """z = x / (a + σ) moves along the network's velocity from τ near 1 to 0: by hand, and by diffusers' scheduler."""
    frames = walk(FLOW, "DDIM_{}_0p0", steps)
    timesteps = [frame.t for frame in frames]
    scheduler = FlowMatchEulerDiscreteScheduler(T)
    scheduler.sigmas = torch.cat([TIME[timesteps], torch.zeros(1, dtype=torch.float64)])  # its own are float32
    scheduler._step_index = 0
    scales = [*(A + SIGMA)[timesteps], 1]
    z = theirs = X_T / scales[0]
    for i, frame in enumerate(frames):
        (now, then), (scale, scale_next) = scheduler.sigmas[i : i + 2], scales[i : i + 2]
        t = torch.full((len(X_T),), frame.t)
        z = z + (then - now) * network(scale * z, t)
        # it rounds the sample that a step starts from to float32: the step starts from 0 and is added here
        step = scheduler.step(network(scale * theirs, t), float(frame.t), torch.zeros_like(z))
        theirs = theirs + step.prev_sample
        # float64, 1e-16, over σ of at least 1e-3, in 50 steps
        torch.testing.assert_close((z, theirs), (frame.sample / scale_next,) * 2, rtol=0, atol=1e-10)


def as_v(diffusion):
    """The fixed network, which stands for one that predicts velocities, as one that predicts v."""

    def model(x, t):
        ac, velocity = diffusion.alphas_cumprod[t].view(-1, 1, 1, 1), network(x, t)
        x_start = (x - (1 - ac).sqrt() * velocity) / (ac.sqrt() + (1 - ac).sqrt())
        return target_of("pred_v", x_start, x_start + velocity, ac)

    return model


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("schedule", ["flow", "cosine"])
def test_all_that_samples_works_with_velocities(schedule, clip):
    """The same samples, fillings, mixtures, edits and bits as of a network that predicts v, with the same betas."""
    flow, v = (GaussianDiffusion(T, schedule, objective=name, clip_denoised=clip) for name in ("pred_flow", "pred_v"))
    x_start, hole = randn(2, 1, 4, 4, seed=4).clamp(-1, 1), torch.eye(4) > 0
    ddpm, ddim = SampleSpec.parse("DDPM_12_0p0"), SampleSpec.parse("DDIM_12_0p0")

    def results(*given):
        for method in METHODS:
            yield walk(given[0], method, 7, given[1])[-1].sample
        for mode in ("slerp", "ddim"):
            yield from interpolate(*given, x_start, x_start.flip(0), ddim, 600, [0.3], 5, mode)
        for mode in ("sdedit", "ddim"):
            yield list(edit(*given, X_T, x_start, ddim, 400, SampleNoise(1, range(2)), mode))[-1].sample
        yield list(repaint(*given, X_T, x_start, hole, ddpm, seeded(2), 3, 2))[-1].sample
        steps = list(predictions(*given, x_start, ddpm, seeded()))
        errors = torch.stack([(x - x_start).square().flatten(1).mean(1) for x in steps], 1)
        yield bound_terms(given[0], ddpm, x_start, errors, steps[-1], "small")

    for ours, theirs in zip(results(flow, network), results(v, as_v(v)), strict=True):
        # 1e-16 over σ of at least 1e-3; bits divide by the square of it
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_cosine_betas_and_v_are_trigflow():
    """The angle of x_t is linear in t, v is the derivative by it, and a DDIM step is a rotation (Lu & Song 2024)."""
    d = GaussianDiffusion(T, objective="pred_v", clip_denoised=False)
    angle = torch.atan2((1 - d.alphas_cumprod).sqrt(), d.alphas_cumprod.sqrt())
    linear = ((torch.arange(T) + 1) / T + 0.008) / 1.008 * math.pi / 2
    # it begins at 0 instead of arccos(sqrt(f(0))) = 0.0125, which ᾱ divides by: most is left of it at t = 0
    assert 0.007 < (angle - linear).abs().max() < 0.0077
    frames = walk(d, "DDIM_{}_0p0", 10)
    x, angles = X_T, [*angle[[frame.t for frame in frames]].tolist(), 0.0]
    for frame, (now, then) in zip(frames, pairwise(angles), strict=True):
        v = network(x, torch.full((len(x),), frame.t))
        x = math.cos(then - now) * x + math.sin(then - now) * v
        torch.testing.assert_close(frame.sample, x, rtol=0, atol=1e-12)  # float64 in another order


# --- how training draws timesteps ---


@pytest.mark.parametrize("timestep_num", [1, 10, 1000])
def test_uniform_timesteps_are_torchs_own(timestep_num):
    ours = GaussianDiffusion(timestep_num).draw_timesteps(64, seeded(5))
    assert torch.equal(ours, torch.randint(timestep_num, (64,), generator=seeded(5)))


@pytest.mark.parametrize("timestep_num", [7, 1000])
def test_logit_normal_timesteps_have_the_density_of_the_paper(timestep_num):
    """The share below τ is Φ(ln(τ / (1 - τ))), at the borders between timesteps."""
    d, n = GaussianDiffusion(timestep_num, timestep_density="logit_normal"), 100_000
    t = d.draw_timesteps(n, seeded(6))
    assert t.dtype == torch.int64 and t.shape == (n,) and 0 <= t.min() and t.max() < timestep_num
    border = torch.arange(1, timestep_num, dtype=torch.float64) / timestep_num
    found = torch.bincount(t, minlength=timestep_num).cumsum(0)[:-1] / n
    # Kolmogorov: the largest distance exceeds 1.95 / sqrt(n) once in a thousand draws
    assert (found - torch.from_numpy(norm.cdf(torch.logit(border)))).abs().max() < 1.95 / n**0.5


def test_the_middle_comes_first_and_every_timestep_at_the_end():
    drawn = {}
    for density in ("uniform", "logit_normal", "logit_normal_first"):
        d = GaussianDiffusion(timestep_density=density)
        drawn[density] = [d.draw_timesteps(64, seeded(7), progress) for progress in (0.0, 0.66, 0.67, 1.0)]
    early, late = drawn["logit_normal"][0], drawn["uniform"][0]
    assert all(map(torch.equal, drawn["logit_normal_first"], [early, early, late, late]))
    assert not torch.equal(early, late)


# --- betas that are given ---


def test_given_betas_take_the_place_of_a_schedule():
    named, given = GaussianDiffusion(50, "linear"), GaussianDiffusion(betas=GaussianDiffusion(50, "linear").betas)
    assert given.timestep_num == 50 and torch.equal(given.alphas_cumprod, named.alphas_cumprod)
    for ours, theirs in zip(walk(given, "DPMpp_{}_1p0", 5), walk(named, "DPMpp_{}_1p0", 5), strict=True):
        assert torch.equal(ours.sample, theirs.sample)
    assert GaussianDiffusion(betas=named.betas.float()).betas.dtype == torch.float64


@pytest.mark.parametrize("betas", [[], [0.1, 0.0], [0.1, 1.0], [math.nan], [[0.1, 0.2]]])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="betas"):
        GaussianDiffusion(betas=torch.tensor(betas))
