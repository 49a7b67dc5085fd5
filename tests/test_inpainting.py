"""RePaint: its jumps, the known part, and Gaussian data with known coordinates, where the exact answer is known."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.samplers import F64, T, network, randn, seeded

from diffusion import GaussianDiffusion, SampleNoise, SampleSpec, repaint
from diffusion.inpainting import way

# --- jumps ------------------------------------------------------------------------------------------------------------


def test_without_jumps_the_timesteps_fall_one_by_one():
    assert way([0, 1, 2], 1, 1) == way([0, 1, 2], 10, 1) == [2, 1, 0, -1] and way([9], 3, 5) == [9, -1]


def test_jumps_of_one_step_repeat_each_step_but_the_last():
    """Algorithm 1 of the paper with U = 3; a jump shorter than the steps is one step."""
    assert way([0, 1, 2], 1, 3) == [2, 1, 2, 1, 2, 1, 0, 1, 0, 1, 0, -1]
    assert way([9, 19, 29], 1, 3) == way([9, 19, 29], 10, 3) == [29, 19, 29, 19, 29, 19, 9, 19, 9, 19, 9, -1]


def test_longer_jumps_repeat_the_way_between_two_stops():
    assert way([0, 1, 2, 3, 4, 5], 2, 2) == [5, 4, 3, 2, 4, 3, 2, 1, 0, 2, 1, 0, -1]


def test_a_jump_is_as_long_in_any_number_of_steps_and_a_25th_of_all_by_default():
    """The paper's 10 of 250 steps are 40 of 1000 timesteps."""
    for steps in (25, 50, 250, 1000):
        timesteps = SampleSpec("DDPM", steps, 0.0).timesteps(1000)
        path = way(timesteps)
        assert path == way(timesteps, 40, 5)
        assert {after - t for t, after in pairwise(path) if after > t} == {40}
    uneven = SampleSpec("DDPM", 30, 0.0).timesteps(1000)  # steps of 33 or 34: the nearest is one
    assert {after - t for t, after in pairwise(way(uneven)) if after > t} == {33, 34}


def test_a_jump_longer_than_all_steps_is_shortened():
    assert way([9, 19, 29], 1000, 2) == way([9, 19, 29], 20, 2) == [29, 19, 9, 29, 19, 9, -1]


@pytest.mark.parametrize("steps, jump_length, resamplings", [(250, 10, 10), (50, 10, 5), (50, 5, 3), (20, 2, 4)])
def test_the_way_is_that_of_diffusers(steps, jump_length, resamplings):
    """Its RePaintScheduler counts jumps in steps, goes up one step at a time, and leaves out the picture."""
    from diffusers import RePaintScheduler

    scheduler = RePaintScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(steps, jump_length, resamplings)
    length = 1000 // steps
    timesteps = SampleSpec("DDPM", steps, 0.0).timesteps(1000)
    path = [(t + 1) // length for t in way(timesteps, jump_length * length, resamplings)]
    expected = path[:1]
    for level, after in pairwise(path[:-1]):
        expected += [after] if after < level else range(level + 1, after + 1)
    assert [t // length + 1 for t in scheduler.timesteps.tolist()] == expected


# --- what is filled ---------------------------------------------------------------------------------------------------

X_START, HOLE = randn(3, 1, 4, 4, seed=5), torch.zeros(4, 4, dtype=torch.bool)
HOLE[1:3, 1:4] = True


def fill(indices=range(3), info="DDPM_10_0p0", jumps=(300, 2), seed=0, x_start=X_START):
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
    calls = [t for t, after in pairwise(way(list(range(99, 1000, 100)), 300, 2)) if after < t]
    assert [frame.t for frame in ddpm] == [frame.t for frame in ddim] == calls and len(calls) == 19
    torch.testing.assert_close(ddpm[-1].sample, ddim[-1].sample, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "info, says",
    [
        ("DPMpp_10_0p0", "DDPM or DDIM, such as DDPM_50_0p0, and not of DPMpp_10_0p0"),
        ("NaiveDDPM_10_0p0", "not of NaiveDDPM_10_0p0"),
        ("DDPM_1001_0p0", "1001 steps"),
    ],
)
def test_what_cannot_jump_is_refused_before_anything_is_computed(info, says):
    with pytest.raises(ValueError, match=says):
        fill(info=info)


# --- Gaussian data ----------------------------------------------------------------------------------------------------

KNOWN = 1.0  # the first of three coordinates
MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[0.30, 0.18, -0.10], [0.18, 0.15, -0.02], [-0.10, -0.02, 0.12]])
EXACT_MEAN = MEAN[1:] + COVARIANCE[1:, 0] / COVARIANCE[0, 0] * (KNOWN - MEAN[0])
EXACT_COVARIANCE = COVARIANCE[1:, 1:] - np.outer(COVARIANCE[1:, 0], COVARIANCE[0, 1:]) / COVARIANCE[0, 0]


def perfect(ac, mean=MEAN, covariance=COVARIANCE):
    """E[x_0 | x_t] = gain x_t + offset."""
    gain = ac**0.5 * covariance @ np.linalg.inv(ac * covariance + (1 - ac) * np.eye(len(mean)))
    return gain, mean - ac**0.5 * gain @ mean


def moments(steps, jump_length, resamplings, timestep_num=T, pixels=(MEAN, COVARIANCE, KNOWN)):
    """Mean and covariance of the filled coordinates: each step and each jump is affine in x_t, plus noise."""
    d = GaussianDiffusion(timestep_num)
    timesteps = SampleSpec("DDPM", steps, 0.0).timesteps(timestep_num)
    ac_of = {-1: 1.0} | {t: d.alphas_cumprod[t].item() for t in timesteps}
    *data, value = pixels
    gains, eye = {t: perfect(ac, *data) for t, ac in ac_of.items()}, np.eye(len(data[0]))
    known = np.diag(eye[0])
    mean, cov, unknown = np.zeros(len(eye)), eye, eye - known
    for t, after in pairwise(way(timesteps, jump_length, resamplings)):
        ac, ac_next = ac_of[t], ac_of[after]
        if after > t:
            kept = ac_next / ac
            mean, cov = kept**0.5 * mean, kept * cov + (1 - kept) * eye
            continue
        (gain, offset), beta = gains[t], 1 - ac / ac_next
        of_x_start = ac_next**0.5 * beta / (1 - ac)  # Ho et al. 2020, eq. 7
        step = unknown @ ((1 - beta) ** 0.5 * (1 - ac_next) / (1 - ac) * eye + of_x_start * gain)
        mean = step @ mean + unknown @ (of_x_start * offset) + ac_next**0.5 * value * known[0]
        cov = step @ cov @ step.T + beta * (1 - ac_next) / (1 - ac) * unknown + (1 - ac_next) * known
    return mean[1:], cov[1:, 1:]


@pytest.mark.parametrize("steps, jump_length, resamplings", [(20, 50, 1), (20, 50, 4), (30, 165, 3)])
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
    """All 1000 steps, jumps of 50 timesteps."""
    of_mean, of_covariance = zip(*(errors(T, 50, resamplings) for resamplings in (1, 2, 4, 8)), strict=True)
    assert of_mean[0] > 0.2 and all(b < 0.6 * a for a, b in zip(of_mean, of_mean[1:], strict=False)), of_mean
    assert of_mean[-1] < 0.02
    assert of_covariance[0] > 0.06 and max(of_covariance[1:]) < 0.03, of_covariance
    assert errors(100, 1, 1)[0] > 0.2 and errors(4 * T, 1, 1, 4 * T)[0] > 0.2  # more steps do not replace it


def test_more_resamplings_do_not_make_up_for_long_jumps():
    """Two pixels with a correlation of 0.9, of which one is known to be 1: the other has the mean 0.9, in 50 steps.

    Jumps of 200 timesteps get stuck at 0.67 however often. Default jumps come twice as close in as many calls, and
    shorter ones go on to improve.
    """
    pixels = np.zeros(2), np.array([[1, 0.9], [0.9, 1]]) / 16, 0.25

    def missing(jump_length, resamplings):
        return 0.9 - 4 * moments(50, jump_length, resamplings, pixels=pixels)[0].item()

    assert 0.22 < missing(200, 5) and abs(missing(200, 5) - missing(200, 100)) < 0.002
    assert missing(None, 5) < 0.5 * missing(200, 5)
    assert missing(20, 20) < 0.7 * missing(None, 5)


@pytest.mark.slow
def test_the_covariance_that_remains_missing_falls_with_the_number_of_steps():
    """DDPM's steps lose a little variance, see docs/theory.md."""
    few, some, many = (errors(n * T // 4, n * T // 80, 4, n * T // 4)[1] for n in (1, 4, 16))
    assert some < 0.5 * few and many < some, (few, some, many)
