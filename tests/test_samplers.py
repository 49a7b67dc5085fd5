"""Samplers: step by step against diffusers, and what holds for every walk from x_T to x_0."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from helpers.samplers import (
    METHODS,
    NAIVE,
    OBJECTIVES,
    SCHEDULES,
    X_T,
    T,
    all_pairs,
    knows,
    network,
    randn,
    seeded,
    target_of,
    walk,
    with_slow,
)

from diffusion import GaussianDiffusion, SampleSpec, sample

PREDICTION_TYPES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}

# --- against diffusers ---


def diffusers_walk(diffusion, method, steps, seed=3):
    """(t, x_{t_prev}, pred_x_start) of each step of diffusers' sampler, with our float64 table in it."""
    spec = SampleSpec.parse(method.format(steps))
    timesteps = np.floor(np.linspace(-1, T - 1, steps + 1))[:0:-1].astype(int).tolist()
    shared = {"num_train_timesteps": T, "prediction_type": PREDICTION_TYPES.get(diffusion.objective, "epsilon")}
    if "DDPM" in spec.method:
        # Two of its conventions differ, without consequence: its variance is never below 1e-20, and it adds
        # noise of that size in a last step that goes from t > 0 to x_start. That moves x by 1e-10.
        variance = "fixed_large" if spec.method == "DDPMlarge" else "fixed_small"
        scheduler = DDPMScheduler(variance_type=variance, clip_sample=True, **shared)
        if spec.method != "NaiveDDPM":  # without a list of timesteps it steps from t to t - 1
            scheduler.set_timesteps(timesteps=timesteps)
        extra = {}
    else:
        scheduler = DDIMScheduler(set_alpha_to_one=True, clip_sample=True, **shared)
        extra = {"eta": spec.eta, "use_clipped_model_output": True}
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    x, generator = X_T, seeded(seed)
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1], strict=True):
        # DDIMScheduler accepts no list of timesteps: it steps from t to t - T // num_inference_steps. A fraction
        # makes that our step, also where the steps are uneven. (DDPMScheduler does not use it.)
        if spec.method == "DDIM":
            scheduler.num_inference_steps = Fraction(T, t - t_prev)
        output = network(x, torch.full((len(x),), t))
        if diffusion.objective not in PREDICTION_TYPES:  # the noise, from this output and x = a x_0 + σ ε
            ac = diffusion.alphas_cumprod[t]
            p, q = (target_of(diffusion.objective, *ends, ac) for ends in ((1, 0), (0, 1)))
            output = (ac.sqrt() * output - p * x) / (q * ac.sqrt() - p * (1 - ac).sqrt())
        step = scheduler.step(output, t, x, generator=generator, **extra)
        # With the large variance it adds noise even to x_start, where that is reached from t > 0; ours ends there.
        ends = spec.method == "DDPMlarge" and t_prev < 0
        x = step.pred_original_sample if ends else step.prev_sample
        yield t, x, step.pred_original_sample


def diffusers_dpm_walk(diffusion, method, steps, seed=3):
    """The same for DPMSolverMultistepScheduler, by its update functions: its step() casts a float64 x to float32.

    It does not clip x_start, so our clipped one is passed as its prediction.
    """
    spec = SampleSpec.parse(method.format(steps))
    timesteps = spec.timesteps(T)[::-1]  # tested in test_sample_spec.py
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
            # Its last step multiplies the noise by a sigma of 0.
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) if i < steps - 1 else torch.zeros_like(x)
        first = i == 0 or i == steps - 1
        update = (
            scheduler.dpm_solver_first_order_update if first else scheduler.multistep_dpm_solver_second_order_update
        )
        x = update(outputs[-1] if first else outputs[-2:], sample=x, noise=noise)
        yield t, x, outputs[-1]


def diffusers_unipc_walk(diffusion, method, steps):
    """The same for UniPCMultistepScheduler, which computes in float64 where x is.

    It corrects the first step with half of the new prediction. This correction is made here instead, in closed form.
    """
    timesteps = SampleSpec.parse(method.format(steps)).timesteps(T)[::-1]
    scheduler = UniPCMultistepScheduler(T, prediction_type="sample", solver_order=2, disable_corrector=[0])
    scheduler.set_timesteps(steps)
    ac = diffusion.alphas_cumprod[timesteps]
    scheduler.sigmas = torch.cat([((1 - ac) / ac).sqrt(), torch.zeros(1, dtype=torch.float64)])
    scheduler._step_index, x, outputs = 0, X_T, []
    for i, t in enumerate(timesteps):
        ts = torch.full((len(x),), t)
        outputs.append(diffusion.predict_x_start(network(x, ts), x, ts))
        if i == 1:  # ∫ e^λ (m_0 + (m_1 - m_0) (λ - λ_0) / h) dλ by parts
            alpha, sigma = ac[:2].sqrt(), (1 - ac[:2]).sqrt()
            h = ((alpha[1] * sigma[0]) / (sigma[1] * alpha[0])).log()
            of_start = alpha[1] * ((1 - (-h).exp()) / h - (-h).exp())
            of_end = alpha[1] * (1 - (1 - (-h).exp()) / h)
            x = sigma[1] / sigma[0] * X_T + of_start * outputs[0] + of_end * outputs[1]
        x = scheduler.step(outputs[-1], t, x).prev_sample
        yield t, x, outputs[-1]


EVERY_METHOD = [*METHODS, NAIVE, "DDPMlarge_{}_0p0", "DPMpp_{}_0p0_quad", "DPMpp_{}_1p0_quad", "UniPC_{}_0p0_quad"]
ALL_STEPS = [(f"{method}_{{}}_0p0", T, "cosine", "pred_v") for method in ("DDPM", "DPMpp", "UniPC")]
WALKS = {"DPMpp": diffusers_dpm_walk, "UniPC": diffusers_unipc_walk}


@pytest.mark.parametrize(
    "method, steps, schedule, objective",
    with_slow(T, all_pairs(EVERY_METHOD, [200, 50, 7, 2, 1], SCHEDULES, OBJECTIVES) + ALL_STEPS),
)
def test_each_step_equals_diffusers(method, steps, schedule, objective):
    d = GaussianDiffusion(T, schedule, objective=objective)
    frames = walk(d, method, steps)
    theirs = WALKS.get(method.split("_")[0], diffusers_walk)(d, method, steps)
    for frame, (t, x, x_start) in zip(frames, theirs, strict=True):
        assert frame.t == t
        # float64 in another order, 1e-16, times 2e4 where cosine betas divide by sqrt(ᾱ_T); and the
        # 1e-10 of DDPM's last step. Each chain continues from its own state.
        torch.testing.assert_close((frame.sample, frame.pred_x_start), (x, x_start), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [T, 100, 50, 7, 1])
@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_respaced_ddpm_equals_ddim_with_eta_1(schedule, steps):
    """Song et al. 2021, section 4.1: the same posterior in two forms, for any choice of timesteps."""
    d = GaussianDiffusion(T, schedule)
    for ddpm, ddim in zip(walk(d, "DDPM_{}_0p0", steps), walk(d, "DDIM_{}_1p0", steps), strict=True):
        # The same noise; float64 in another order, as above.
        torch.testing.assert_close(ddpm.sample, ddim.sample, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_naive_ddpm_equals_ddpm_with_all_steps(schedule):
    d = GaussianDiffusion(T, schedule)
    for naive, ddpm in zip(walk(d, NAIVE, T), walk(d, "DDPM_{}_0p0", T), strict=True):
        assert torch.equal(naive.sample, ddpm.sample)


# --- every walk ---


@pytest.mark.parametrize(
    "method, steps, schedule, objective", all_pairs(METHODS, [*range(1, 9), 20], SCHEDULES, OBJECTIVES)
)
def test_every_walk_ends_in_range(method, steps, schedule, objective):
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


@pytest.mark.parametrize("method", METHODS)
def test_the_last_step_ends_at_x_start(method):
    last = walk(GaussianDiffusion(T), method, 7)[-1]
    assert torch.equal(last.sample, last.pred_x_start)


@pytest.mark.parametrize("method", METHODS)
def test_the_generator_alone_decides_the_noise(method):
    d = GaussianDiffusion(T)
    torch.manual_seed(0)
    first = walk(d, method, 10, seed=1)[-1].sample
    torch.manual_seed(1)
    assert torch.equal(first, walk(d, method, 10, seed=1)[-1].sample)
    assert torch.equal(first, walk(d, method, 10, seed=2)[-1].sample) == (
        method in ("DDIM_{}_0p0", "DPMpp_{}_0p0", "UniPC_{}_0p0")
    )


def test_sampling_keeps_no_graph():
    model = torch.nn.Conv2d(1, 1, 3, padding=1).double()
    for frame in walk(GaussianDiffusion(T), "DDIM_{}_1p0", 3, lambda x, t: model(x)):
        assert not frame.sample.requires_grad and not frame.pred_x_start.requires_grad
    assert model(X_T).requires_grad  # sampling has not switched gradients off for other code


@pytest.mark.parametrize("depth", [1, 7, 500, 1000])
@pytest.mark.parametrize("method", METHODS)
def test_sampling_undoes_the_forward_process(method, depth):
    """A picture noised to some depth, and the network that knows it: the walk starts there and returns to it."""
    d = GaussianDiffusion(T, clip_denoised=False)
    x_start = randn(2, 1, 4, 4, seed=6)
    x_t = d.q_sample(x_start, torch.full((2,), depth - 1), randn(2, 1, 4, 4, seed=7))
    frames = walk(d, method, min(depth, 5), knows(x_start, d), x_t, depth=depth)
    assert frames[0].t == depth - 1
    for frame in frames:
        # 1e-16 over sqrt(ᾱ), 5e-5 at the deepest.
        torch.testing.assert_close(frame.pred_x_start, x_start, rtol=0, atol=1e-9)
    torch.testing.assert_close(frames[-1].sample, x_start, rtol=0, atol=1e-9)
