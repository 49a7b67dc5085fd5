"""Samplers: step by step against diffusers, and on data whose answer is known."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import example, given, settings
from hypothesis import strategies as st
from walks import METHODS, PREDICTION_TYPES, X_T, T, knows, network, randn, seeded, walk

from diffusion import GaussianDiffusion, SampleSpec

relaxed = settings(deadline=None)  # a busy machine is no failure


# --- SampleSpec ---

SPEC_TEXTS = st.from_regex(r"(DDPM|DDIM)_[1-9][0-9]{0,5}_(0p[0-9]{1,3}|1p0{1,3})", fullmatch=True)


@given(text=SPEC_TEXTS)
@example(text="DDIM_50_0p001")
@relaxed
def test_a_spec_reads_what_it_writes(text):
    spec = SampleSpec.parse(text)
    method, steps, eta = text.split("_")
    assert (spec.method, spec.steps, spec.eta) == (method, int(steps), float(eta.replace("p", ".")))
    assert SampleSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["DDPM_1000_0p0", "DDIM_50_0p0", "DDIM_1_0p25", "DDIM_7_1p0"])
def test_a_spec_writes_what_it_read(text):
    assert str(SampleSpec.parse(text)) == text


NO_METHOD = ["ddim_50_0p0", "PLMS_50_0p0", " DDIM_50_0p0", "_50_0p0", ""]
NO_STEPS = ["DDIM_0_0p0", "DDIM_-5_0p0", "DDIM_050_0p0", "DDIM_1e3_0p0", "DDIM_5٠_0p0", "DDIM__0p0"]
NO_ETA = ["DDIM_50_0.0", "DDIM_50_1p5", "DDIM_50_2p0", "DDIM_50_-0p5", "DDIM_50_0p", "DDIM_50_0p٠"]
NO_END = ["DDPM", "DDIM_50", "DDIM_50_", "DDIM_50_0p0_x", "DDIM_50_0p0\n"]


@pytest.mark.parametrize("text", NO_METHOD + NO_STEPS + NO_ETA + NO_END)
def test_a_bad_spec_is_shown_the_grammar(text):
    with pytest.raises(ValueError) as refusal:
        SampleSpec.parse(text)
    assert all(part in str(refusal.value) for part in [repr(text), "METHOD_STEPS_ETA", "DDIM_50_0p0"])
    assert "\n" not in str(refusal.value)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(ValueError, match="DDIM_11_0p0 .* 10 timesteps"):
        SampleSpec.parse("DDIM_11_0p0").timesteps(10)
    with pytest.raises(ValueError, match="DDIM_11_0p0 .* 10 timesteps"):
        walk(GaussianDiffusion(10), "DDIM_{}_0p0", 11)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10, 20, 40, 50, 100, 125, 200, 250, 500, 1000])
def test_timesteps_are_linspace_rounded_down(steps):
    # These divide T: every value is an integer, and numpy's floats are exact.
    expected = np.floor(np.linspace(-1, T - 1, steps + 1))[1:]
    assert SampleSpec("DDIM", steps, 0.0).timesteps(T) == expected.astype(int).tolist()


@given(pair=st.tuples(st.integers(1, 1200), st.integers(1, 1200)))
@relaxed
def test_timesteps_of_any_number_of_steps(pair):
    steps, depth = sorted(pair)
    timesteps = SampleSpec("DDIM", steps, 0.0).timesteps(depth)
    assert timesteps == [Fraction(k * depth, steps).__floor__() - 1 for k in range(1, steps + 1)]
    assert timesteps == sorted(set(timesteps)) and timesteps[0] >= 0 and timesteps[-1] == depth - 1
    assert SampleSpec("DDIM", depth, 0.0).timesteps(depth) == list(range(depth))


# --- against diffusers ---


def diffusers_walk(diffusion, method, steps, seed=3):
    """(t, x_{t_prev}, pred_x_start) of each step of diffusers' sampler, with our float64 table in it."""
    spec = SampleSpec.parse(method.format(steps))
    timesteps = np.floor(np.linspace(-1, T - 1, steps + 1))[:0:-1].astype(int).tolist()
    shared = {"num_train_timesteps": T, "prediction_type": PREDICTION_TYPES[diffusion.objective]}
    if spec.method == "DDPM":
        # Two conventions differ, both without weight: its variance is never below 1e-20, and it draws
        # noise, of that size, in a last step that goes from t > 0 to x_start. That moves x by 1e-10.
        scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=True, **shared)
        scheduler.set_timesteps(timesteps=timesteps)
        extra = {}
    else:
        scheduler = DDIMScheduler(set_alpha_to_one=True, clip_sample=True, **shared)
        extra = {"eta": spec.eta, "use_clipped_model_output": True}
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    x, generator = X_T, seeded(seed)
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        # DDIMScheduler knows no list of timesteps: it goes from t to t - T // num_inference_steps. A fraction
        # makes that stride ours, also where the strides are uneven. (DDPMScheduler does not look at it.)
        scheduler.num_inference_steps = Fraction(T, t - t_prev)
        output = network(x, torch.full((len(x),), t))
        step = scheduler.step(output, t, x, generator=generator, **extra)
        x = step.prev_sample
        yield t, x, step.pred_original_sample


@pytest.mark.parametrize("steps", [1000, 100, 50, 7, 1])
@pytest.mark.parametrize("objective", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("method", METHODS)
def test_each_step_is_diffusers(method, schedule, objective, steps):
    d = GaussianDiffusion(T, schedule, objective=objective)
    frames = walk(d, method, steps)
    for frame, (t, x, x_start) in zip(frames, diffusers_walk(d, method, steps), strict=True):
        assert frame.t == t
        # float64 in another order, 1e-16, times 2e4 where cosine betas divide by sqrt(ᾱ_T); and the
        # 1e-10 of DDPM's last step. Each chain goes on from its own state.
        torch.testing.assert_close((frame.sample, frame.pred_x_start), (x, x_start), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1000, 100, 50, 7, 1])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_respaced_ddpm_is_ddim_with_eta_1(schedule, steps):
    """Song et al. 2021, section 4.1: the same posterior in two forms, for any choice of timesteps."""
    d = GaussianDiffusion(T, schedule)
    for ddpm, ddim in zip(walk(d, "DDPM_{}_0p0", steps), walk(d, "DDIM_{}_1p0", steps), strict=True):
        # The same noise; float64 in another order, as above.
        torch.testing.assert_close(ddpm.sample, ddim.sample, rtol=0, atol=1e-9)


# --- data of which the perfect network is known: x_0 ~ N(MU, S²), every pixel on its own ---

MU, S = 0.3, 0.5


def moments(diffusion, method, timesteps):
    """Mean and variance of what the method's steps make of x_T ~ N(0, 1): each step is linear in x_t.

    x_start and noise are E[x_0 | x_t] and E[ε | x_t] of Gaussians; the steps are Song et al.'s eq. 12
    and 16 and Ho et al.'s eq. 7 with the β of the step taken.
    """
    mean, variance = 0.0, 1.0
    for t, t_prev in reversed(list(zip(timesteps, [-1, *timesteps[:-1]], strict=True))):
        ac = diffusion.alphas_cumprod[t].item()
        ac_prev = diffusion.alphas_cumprod[t_prev].item() if t_prev >= 0 else 1.0
        marginal = ac * S**2 + 1 - ac  # the variance of x_t
        x_start_slope, noise_slope = ac**0.5 * S**2 / marginal, (1 - ac) ** 0.5 / marginal
        beta = 1 - ac / ac_prev
        posterior_variance = (1 - ac_prev) / (1 - ac) * beta
        if method.startswith("DDPM"):
            drawn = posterior_variance
            of_x_start, of_noise = ac_prev**0.5 * beta / (1 - ac), 0
            of_x_t = (1 - beta) ** 0.5 * (1 - ac_prev) / (1 - ac)
        else:
            drawn = SampleSpec.parse(method.format(1)).eta ** 2 * posterior_variance
            of_x_start, of_noise, of_x_t = ac_prev**0.5, max(0, 1 - ac_prev - drawn) ** 0.5, 0
        slope = of_x_start * x_start_slope + of_noise * noise_slope + of_x_t
        centred = mean - ac**0.5 * MU  # x_start is MU, and the noise 0, where x_t is sqrt(ᾱ) MU
        mean = slope * centred + of_x_start * MU + of_x_t * ac**0.5 * MU
        variance = slope**2 * variance + drawn
    return mean, variance


@pytest.mark.parametrize("steps", [1000, 50, 10])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("method", METHODS)
def test_gaussian_data_come_out(method, schedule, steps):
    d = GaussianDiffusion(T, schedule, clip_denoised=False)

    def perfect(x, t):
        ac = d.alphas_cumprod[t].view(-1, 1, 1, 1)
        return (1 - ac).sqrt() * (x - ac.sqrt() * MU) / (ac * S**2 + 1 - ac)

    noise = randn(1, 1, 150, 150, seed=5)
    result = walk(d, method, steps, perfect, noise)[-1].sample
    mean, variance = moments(d, method, SampleSpec.parse(method.format(steps)).timesteps(T))
    if steps == T:
        # With all of the steps the data themselves; what is left of the steps' size is 0.001 and 1.6%.
        assert (mean, variance) == (pytest.approx(MU, abs=0.002), pytest.approx(S**2, rel=0.02))
    # Five standard errors of the mean and of the variance of n Gaussian pixels.
    n = noise.numel()
    assert result.mean().item() == pytest.approx(mean, abs=5 * (variance / n) ** 0.5)
    assert result.var().item() == pytest.approx(variance, abs=5 * variance * (2 / n) ** 0.5)


# --- the walk itself ---


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("objective", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("method", METHODS)
def test_every_walk_ends_in_range(method, schedule, objective, steps):
    d = GaussianDiffusion(20, schedule, objective=objective)
    noise = X_T.float()
    frames = walk(d, method, steps, noise=noise)
    assert len(frames) == steps
    assert [frame.t for frame in frames] == sorted({frame.t for frame in frames}, reverse=True)
    assert frames[0].t == 19
    for frame in frames:
        assert frame.sample.shape == noise.shape and frame.sample.dtype == torch.float32
        assert frame.sample.isfinite().all() and frame.pred_x_start.abs().max() <= 1
    assert frames[-1].sample.abs().max() <= 1
    sample = d.sample(network, noise, SampleSpec.parse(method.format(steps)), generator=seeded(3))
    assert torch.equal(frames[-1].sample, sample)


def test_the_last_step_ends_at_x_start():
    for method in METHODS:
        last = walk(GaussianDiffusion(T), method, 7)[-1]
        assert torch.equal(last.sample, last.pred_x_start)


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_decides_the_noise(method):
    d = GaussianDiffusion(T)
    torch.manual_seed(0)
    first = walk(d, method, 10, seed=1)[-1].sample
    torch.manual_seed(1)
    assert torch.equal(first, walk(d, method, 10, seed=1)[-1].sample)
    assert torch.equal(first, walk(d, method, 10, seed=2)[-1].sample) == (method == "DDIM_{}_0p0")


def test_sampling_keeps_no_graph():
    model = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    for frame in walk(GaussianDiffusion(T), "DDIM_{}_1p0", 3, lambda x, t: model(x)):
        assert not frame.sample.requires_grad and not frame.pred_x_start.requires_grad
    assert model(X_T).requires_grad  # sampling has not switched gradients off for anyone else


@pytest.mark.parametrize("depth", [1, 7, 500, 1000])
@pytest.mark.parametrize("method", METHODS)
def test_sampling_undoes_what_training_does(method, depth):
    """A picture noised to some depth, and the network that knows it: the walk starts there and returns it."""
    d = GaussianDiffusion(T, clip_denoised=False)
    x_start = randn(2, 1, 4, 4, seed=6)
    x_t = d.q_sample(x_start, torch.full((2,), depth - 1), randn(2, 1, 4, 4, seed=7))
    frames = walk(d, method, min(depth, 5), knows(x_start, d), x_t, depth=depth)
    assert frames[0].t == depth - 1
    for frame in frames:
        # 1e-16 over sqrt(ᾱ), 5e-5 at the deepest.
        torch.testing.assert_close(frame.pred_x_start, x_start, rtol=0, atol=1e-9)
    torch.testing.assert_close(frames[-1].sample, x_start, rtol=0, atol=1e-9)
