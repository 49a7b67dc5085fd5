"""Samplers: step by step against diffusers, and on data whose answer is known."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from helpers.samplers import METHODS, NAIVE, PREDICTION_TYPES, X_T, T, knows, network, randn, seeded, walk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusion import GaussianDiffusion, SampleSpec, sample

relaxed = settings(deadline=None)  # a busy machine is no failure


# --- SampleSpec ---

SPEC_TEXTS = st.from_regex(
    r"(DDPM|NaiveDDPM|DDIM|DPMpp)_[1-9][0-9]{0,5}_(0p[0-9]{1,3}|1p0{1,3})(_quad)?", fullmatch=True
)


@given(text=SPEC_TEXTS)
@example(text="DDIM_50_0p001")
@relaxed
def test_a_spec_reads_what_it_writes(text):
    spec = SampleSpec.parse(text)
    method, steps, eta, *quad = text.split("_")
    assert (spec.method, spec.steps, spec.eta) == (method, int(steps), float(eta.replace("p", ".")))
    assert spec.quad == bool(quad)
    assert SampleSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["DDPM_1000_0p0", "DDIM_50_0p0", "DDIM_1_0p25", "DPMpp_7_1p0", "NaiveDDPM_50_0p0", "DDIM_9_0p0_quad"]
)
def test_a_spec_writes_what_it_read(text):
    assert str(SampleSpec.parse(text)) == text


NO_METHOD = ["ddim_50_0p0", "PLMS_50_0p0", " DDIM_50_0p0", "_50_0p0", ""]
NO_STEPS = ["DDIM_0_0p0", "DDIM_-5_0p0", "DDIM_050_0p0", "DDIM_1e3_0p0", "DDIM_5٠_0p0", "DDIM__0p0"]
NO_ETA = ["DDIM_50_0.0", "DDIM_50_1p5", "DDIM_50_2p0", "DDIM_50_-0p5", "DDIM_50_0p", "DDIM_50_0p٠"]
NO_END = ["DDPM", "DDIM_50", "DDIM_50_", "DDIM_50_0p0_x", "DDIM_50_0p0\n", "DDIM_50_0p0_", "DDIM_50_0p0_quad_quad"]


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


@given(pair=st.tuples(st.integers(1, 1200), st.integers(1, 1200)))
@relaxed
def test_quadratic_timesteps_of_any_number_of_steps(pair):
    steps, depth = sorted(pair)
    timesteps = SampleSpec("DDIM", steps, 0.0, quad=True).timesteps(depth)
    assert len(timesteps) == steps and timesteps == sorted(set(timesteps))
    assert timesteps[0] >= 0 and timesteps[-1] == depth - 1
    exact = [Fraction(k * k * depth, steps * steps) - 1 for k in range(1, steps + 1)]
    # rounded up, or moved up to the next that is free: where two would be the same, all below are 0, 1, 2, …
    assert all(e <= t and (t < e + 1 or t == k) for k, (t, e) in enumerate(zip(timesteps, exact, strict=True)))


# --- against diffusers ---


def diffusers_walk(diffusion, method, steps, seed=3):
    """(t, x_{t_prev}, pred_x_start) of each step of diffusers' sampler, with our float64 table in it."""
    spec = SampleSpec.parse(method.format(steps))
    timesteps = np.floor(np.linspace(-1, T - 1, steps + 1))[:0:-1].astype(int).tolist()
    shared = {"num_train_timesteps": T, "prediction_type": PREDICTION_TYPES[diffusion.objective]}
    if spec.method in ("DDPM", "NaiveDDPM"):
        # Two conventions differ, both without weight: its variance is never below 1e-20, and it draws
        # noise, of that size, in a last step that goes from t > 0 to x_start. That moves x by 1e-10.
        scheduler = DDPMScheduler(variance_type="fixed_small", clip_sample=True, **shared)
        if spec.method == "DDPM":  # without a list of timesteps it steps from t to t - 1
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
        if spec.method == "DDIM":
            scheduler.num_inference_steps = Fraction(T, t - t_prev)
        output = network(x, torch.full((len(x),), t))
        step = scheduler.step(output, t, x, generator=generator, **extra)
        x = step.prev_sample
        yield t, x, step.pred_original_sample


def diffusers_dpm_walk(diffusion, method, steps, seed=3):
    """The same of DPMSolverMultistepScheduler, by its own updates: its step() would cast a float64 x to float32.

    It clips no x_start, and so is handed ours, clipped, as its prediction.
    """
    spec = SampleSpec.parse(method.format(steps))
    timesteps = spec.timesteps(T)[::-1]  # which have their own tests
    algorithm = "sde-dpmsolver++" if spec.eta else "dpmsolver++"
    scheduler = DPMSolverMultistepScheduler(T, prediction_type="sample", algorithm_type=algorithm)
    ac = diffusion.alphas_cumprod[timesteps]
    scheduler.sigmas = torch.cat([((1 - ac) / ac).sqrt(), torch.zeros(1, dtype=torch.float64)])
    x, outputs, generator = X_T, [None], seeded(seed)
    for i, t in enumerate(timesteps):
        scheduler._step_index = i
        ts = torch.full((len(x),), t)
        outputs.append(diffusion.predict_x_start(network(x, ts), x, ts))
        noise = None
        if spec.eta:
            # Its last step's noise is multiplied by a sigma of 0.
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) if i < steps - 1 else torch.zeros_like(x)
        first = i == 0 or i == steps - 1
        update = (
            scheduler.dpm_solver_first_order_update if first else scheduler.multistep_dpm_solver_second_order_update
        )
        x = update(outputs[-1] if first else outputs[-2:], sample=x, noise=noise)
        yield t, x, outputs[-1]


@pytest.mark.parametrize("steps", [1000, 100, 50, 7, 2, 1])
@pytest.mark.parametrize("objective", PREDICTION_TYPES)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("method", [*METHODS, NAIVE, "DPMpp_{}_0p0_quad", "DPMpp_{}_1p0_quad"])
def test_each_step_is_diffusers(method, schedule, objective, steps):
    d = GaussianDiffusion(T, schedule, objective=objective)
    frames = walk(d, method, steps)
    theirs = (diffusers_dpm_walk if "DPMpp" in method else diffusers_walk)(d, method, steps)
    for frame, (t, x, x_start) in zip(frames, theirs, strict=True):
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


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_naive_ddpm_is_ddpm_with_all_steps(schedule):
    d = GaussianDiffusion(T, schedule)
    for naive, ddpm in zip(walk(d, NAIVE, T), walk(d, "DDPM_{}_0p0", T), strict=True):
        assert torch.equal(naive.sample, ddpm.sample)


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
    result = sample(d, network, noise, SampleSpec.parse(method.format(steps)), generator=seeded(3))
    assert torch.equal(frames[-1].sample, result)


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
    assert torch.equal(first, walk(d, method, 10, seed=2)[-1].sample) == (method in ("DDIM_{}_0p0", "DPMpp_{}_0p0"))


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
