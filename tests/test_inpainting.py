"""RePaint: its jumps, the known part, and Gaussian data with known coordinates, where the exact answer is known."""

import numpy as np
import pytest
import torch
from helpers.samplers import F64, T, network, randn, seeded

from diffusion import GaussianDiffusion, SampleNoise, SampleSpec, repaint
from diffusion.inpainting import levels

# --- jumps ------------------------------------------------------------------------------------------------------------


def test_without_jumps_the_levels_fall_one_by_one():
    assert levels(5, 1, 1) == [5, 4, 3, 2, 1, 0] and levels(5, 10, 1) == [5, 4, 3, 2, 1, 0]


def test_jumps_of_one_step_repeat_each_step_but_the_last():
    """Algorithm 1 of the paper with U = 3."""
    assert levels(3, 1, 3) == [3, 2, 3, 2, 3, 2, 1, 2, 1, 2, 1, 0]


def test_longer_jumps_repeat_the_way_between_two_stops():
    assert levels(6, 2, 2) == [6, 5, 4, 3, 5, 4, 3, 2, 1, 3, 2, 1, 0]


@pytest.mark.parametrize("steps, jump_length, resamplings", [(250, 10, 10), (50, 10, 5), (50, 5, 3), (20, 2, 4)])
def test_the_levels_are_those_of_diffusers(steps, jump_length, resamplings):
    """Its RePaintScheduler goes up one step at a time, counts from level 1, and leaves out the picture."""
    from diffusers import RePaintScheduler

    scheduler = RePaintScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(steps, jump_length, resamplings)
    path = levels(steps, jump_length, resamplings)
    expected = path[:1]
    for level, after in zip(path, path[1:-1], strict=False):
        expected += [after] if after < level else range(level + 1, after + 1)
    assert [t // (1000 // steps) + 1 for t in scheduler.timesteps.tolist()] == expected


# --- what is filled ---------------------------------------------------------------------------------------------------

X_START, HOLE = randn(3, 1, 4, 4, seed=5), torch.zeros(4, 4, dtype=torch.bool)
HOLE[1:3, 1:4] = True


def fill(indices=range(3), info="DDPM_10_0p0", jumps=(3, 2), seed=0, x_start=X_START):
    noise = SampleNoise(seed, indices)
    x_T = noise.draw((len(indices), 1, 4, 4), torch.float64, "cpu")
    frames = repaint(
        GaussianDiffusion(T), network, x_T, x_start[list(indices)], HOLE, SampleSpec.parse(info), noise, *jumps
    )
    return list(frames)


@pytest.mark.parametrize("info", ["DDPM_10_0p0", "DDIM_10_0p0", "DDIM_10_0p5", "DDPM_10_0p0_quad"])
def test_the_known_part_comes_back_exactly(info):
    x = fill(info=info)[-1].sample
    assert torch.equal(x[:, :, ~HOLE], X_START[:, :, ~HOLE])
    assert (x[:, :, HOLE] != X_START[:, :, HOLE]).all() and x[:, :, HOLE].abs().max() <= 1


def test_a_filling_depends_on_its_seed_and_number_alone():
    together = fill()[-1].sample
    assert torch.equal(together[1:2], fill(range(1, 2))[-1].sample)
    assert torch.equal(together, fill()[-1].sample) and not torch.equal(together, fill(seed=1)[-1].sample)


def test_it_does_not_depend_on_what_was_in_the_hole():
    assert torch.equal(fill()[-1].sample, fill(x_start=X_START.masked_fill(HOLE, 0.3))[-1].sample)


def test_ddim_with_eta_1_is_ddpm_and_each_network_call_is_a_frame():
    ddpm, ddim = fill(), fill(info="DDIM_10_1p0")
    path = levels(10, 3, 2)
    calls = [100 * level - 1 for level, after in zip(path, path[1:], strict=False) if after < level]
    assert [frame.t for frame in ddpm] == [frame.t for frame in ddim] == calls and len(calls) == 19
    torch.testing.assert_close(ddpm[-1].sample, ddim[-1].sample, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "info, jumps, says",
    [
        ("DPMpp_10_0p0", (3, 2), "DDPM or DDIM, such as DDPM_50_0p0, and not of DPMpp_10_0p0"),
        ("NaiveDDPM_10_0p0", (3, 2), "not of NaiveDDPM_10_0p0"),
        ("DDPM_10_0p0", (10, 2), "jumps of 10 steps need more than 10 steps, not 10"),
        ("DDPM_1001_0p0", (3, 2), "1001 steps"),
    ],
)
def test_what_cannot_jump_is_refused_before_anything_is_computed(info, jumps, says):
    with pytest.raises(ValueError, match=says):
        fill(info=info, jumps=jumps)


# --- Gaussian data ----------------------------------------------------------------------------------------------------

KNOWN = 1.0  # the first of three coordinates
MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[0.30, 0.18, -0.10], [0.18, 0.15, -0.02], [-0.10, -0.02, 0.12]])
EXACT_MEAN = MEAN[1:] + COVARIANCE[1:, 0] / COVARIANCE[0, 0] * (KNOWN - MEAN[0])
EXACT_COVARIANCE = COVARIANCE[1:, 1:] - np.outer(COVARIANCE[1:, 0], COVARIANCE[0, 1:]) / COVARIANCE[0, 0]


def perfect(ac):
    """E[x_0 | x_t] = gain x_t + offset."""
    gain = ac**0.5 * COVARIANCE @ np.linalg.inv(ac * COVARIANCE + (1 - ac) * np.eye(3))
    return gain, MEAN - ac**0.5 * gain @ MEAN


def moments(steps, jump_length, resamplings, timestep_num=T):
    """Mean and covariance of the two filled coordinates: each step and each jump is affine in x_t, plus noise."""
    d = GaussianDiffusion(timestep_num)
    ac_of = [1.0] + [d.alphas_cumprod[k * timestep_num // steps - 1].item() for k in range(1, steps + 1)]
    gains = [None] + [perfect(ac) for ac in ac_of[1:]]
    known, unknown = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 1])
    mean, cov, path = np.zeros(3), np.eye(3), levels(steps, jump_length, resamplings)
    for level, after in zip(path, path[1:], strict=False):
        ac, ac_next = ac_of[level], ac_of[after]
        if after > level:
            kept = ac_next / ac
            mean, cov = kept**0.5 * mean, kept * cov + (1 - kept) * np.eye(3)
            continue
        (gain, offset), beta = gains[level], 1 - ac / ac_next
        of_x_start = ac_next**0.5 * beta / (1 - ac)  # Ho et al. 2020, eq. 7
        step = unknown @ ((1 - beta) ** 0.5 * (1 - ac_next) / (1 - ac) * np.eye(3) + of_x_start * gain)
        mean = step @ mean + unknown @ (of_x_start * offset) + ac_next**0.5 * KNOWN * known[0]
        cov = step @ cov @ step.T + beta * (1 - ac_next) / (1 - ac) * unknown + (1 - ac_next) * known
    return mean[1:], cov[1:, 1:]


@pytest.mark.parametrize("steps, jump_length, resamplings", [(20, 1, 1), (20, 1, 4), (30, 5, 3)])
def test_fillings_have_the_moments_of_their_steps(steps, jump_length, resamplings):
    """20,000 fillings, each moment within five of its standard errors."""
    d, count = GaussianDiffusion(T, clip_denoised=False), 20_000

    def model(x, t):
        ac = d.alpha_bar(t[0].item())
        gain, offset = map(torch.from_numpy, perfect(ac))
        return ((x.flatten(1) - ac**0.5 * (x.flatten(1) @ gain.T + offset)) / (1 - ac) ** 0.5).view_as(x)

    x_T, x_start = randn(count, 3, 1, 1, seed=1), torch.full((count, 3, 1, 1), KNOWN, **F64)
    hole = torch.tensor([False, True, True]).view(3, 1, 1)
    spec = SampleSpec("DDPM", steps, 0.0)
    *_, last = repaint(d, model, x_T, x_start, hole, spec, seeded(2), jump_length, resamplings)
    x = last.sample.view(-1, 3)
    assert (x[:, 0] == KNOWN).all()
    mean, cov = (torch.from_numpy(part) for part in moments(steps, jump_length, resamplings))
    assert ((x[:, 1:].mean(0) - mean).abs() < 5 * (cov.diag() / count).sqrt()).all()
    error = ((cov.diag()[:, None] * cov.diag() + cov.square()) / count).sqrt()
    assert ((x[:, 1:].T.cov() - cov).abs() < 5 * error).all()


def errors(*setting):
    """Of the mean and the covariance, relative to the spread of the exact conditional."""
    (mean, cov), spread = moments(*setting), np.trace(EXACT_COVARIANCE)
    return np.linalg.norm(mean - EXACT_MEAN) / spread**0.5, np.linalg.norm(cov - EXACT_COVARIANCE) / spread


@pytest.mark.slow
def test_resampling_approaches_the_exact_conditional_and_replacement_alone_does_not():
    """All 1000 steps, jumps of 50."""
    of_mean, of_covariance = zip(*(errors(T, 50, resamplings) for resamplings in (1, 2, 4, 8)), strict=True)
    assert of_mean[0] > 0.2 and all(b < 0.6 * a for a, b in zip(of_mean, of_mean[1:], strict=False)), of_mean
    assert of_mean[-1] < 0.02
    assert of_covariance[0] > 0.06 and max(of_covariance[1:]) < 0.03, of_covariance
    assert errors(100, 1, 1)[0] > 0.2 and errors(4 * T, 1, 1, 4 * T)[0] > 0.2  # more steps do not replace it


@pytest.mark.slow
def test_the_covariance_that_remains_missing_falls_with_the_number_of_steps():
    """DDPM's steps lose a little variance, see docs/theory.md."""
    few, some, many = (errors(n * T // 4, n * T // 80, 4, n * T // 4)[1] for n in (1, 4, 16))
    assert some < 0.5 * few and many < some, (few, some, many)
