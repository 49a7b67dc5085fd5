"""A schedule, a sampler, a loss and an objective that a reader adds to their tables, as CONTRIBUTING.md has it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMPipeline
from helpers.networks import small_run
from helpers.samplers import OBJECTIVES, ORACLES, SCHEDULES, T, flow, randn, rms_error, sampled, target_of, walk
from helpers.scripts import train

from diffusion import SAMPLERS, Frame, GaussianDiffusion, SampleSpec
from diffusion.gaussian import LOSSES
from diffusion.gaussian import OBJECTIVES as ALL_OBJECTIVES
from diffusion.schedule import BETA_SCHEDULES
from files.errors import ConfigError
from runs.recipe import DIFFUSION_KEYS, KEYS, parse_spec
from sharing.diffusers_folder import export_folder, import_folder


def sigmoid_betas(timestep_num):
    """Jabri et al. 2022, with start -3, end 3 and temperature 1: ᾱ(t) falls along a sigmoid."""

    def alpha_bar(i):
        low, high, here = (1 / (1 + math.exp(-x)) for x in (-3, 3, 6 * i / timestep_num - 3))
        return (high - here) / (high - low)

    betas = [1 - alpha_bar(i + 1) / alpha_bar(i) for i in range(timestep_num)]
    return torch.tensor(betas, dtype=torch.float64).clamp(max=0.999)


def heun(diffusion, model, x_t, steps, eta, draw):
    """Heun's method for dy/ds = ε in y = x / sqrt(ᾱ), s = sqrt(1 - ᾱ) / sqrt(ᾱ) (Karras et al. 2022, algorithm 1).

    The last step, to x_0, is Euler's.
    """

    def scale_and_s(t):
        ac = diffusion.alpha_bar(t)
        return ac**0.5, ((1 - ac) / ac) ** 0.5

    for t, t_prev in steps:
        (scale, s), (scale_prev, s_prev) = scale_and_s(t), scale_and_s(t_prev)
        pred_x_start = diffusion.predict(model, x_t, t)
        slope = diffusion.predict_noise(pred_x_start, x_t, t)
        x_prev = scale_prev * (x_t / scale + (s_prev - s) * slope)
        if t_prev >= 0:
            again = diffusion.predict_noise(diffusion.predict(model, x_prev, t_prev), x_prev, t_prev)
            x_prev = scale_prev * (x_t / scale + (s_prev - s) * (slope + again) / 2)
        x_t = x_prev if t_prev >= 0 else pred_x_start
        yield Frame(t, x_t, pred_x_start)


def huber(error):
    """Quadratic up to an error of 1, linear beyond."""
    return torch.where(error.abs() < 1, 0.5 * error.square(), error.abs() - 0.5)


@pytest.fixture(autouse=True)
def additions(monkeypatch):
    """Enters all four. The allowed values of a recipe's keys are read from the tables at import: once more here."""
    monkeypatch.setitem(BETA_SCHEDULES, "own_sigmoid", sigmoid_betas)
    monkeypatch.setitem(SAMPLERS, "TwoSlopes", heun)
    monkeypatch.setitem(LOSSES, "own_huber", huber)
    monkeypatch.setitem(ALL_OBJECTIVES, "own_edm", lambda a, sigma: (sigma, -a))
    for key, table in {"beta_schedule": BETA_SCHEDULES, "loss_type": LOSSES, "objective": ALL_OBJECTIVES}.items():
        for keys in (KEYS, DIFFUSION_KEYS):
            monkeypatch.setitem(keys, key, replace(keys[key], kind=tuple(table)))


def test_an_added_schedule_is_exported_as_trained_betas_and_comes_back(tmp_path):
    run = small_run(beta_schedule="own_sigmoid")
    torch.testing.assert_close(run.diffusion.betas, sigmoid_betas(T), rtol=0, atol=0)
    export_folder(run, tmp_path / "sprites")
    scheduler = DDPMPipeline.from_pretrained(tmp_path / "sprites").scheduler
    assert scheduler.config.trained_betas == run.diffusion.betas.tolist()
    torch.testing.assert_close(scheduler.betas.double(), run.diffusion.betas, rtol=1e-6, atol=0)  # theirs are float32
    for with_recipe in (True, False):
        if not with_recipe:
            (tmp_path / "sprites" / "recipe.json").unlink()
        back = import_folder(tmp_path / "sprites")
        assert back.recipe["beta_schedule"] == "own_sigmoid"
        assert torch.equal(back.diffusion.betas, run.diffusion.betas)


@pytest.mark.parametrize("oracle", ORACLES)
def test_an_added_sampler_converges_with_its_order(oracle):
    """With linear betas and quadratic timesteps.

    Cosine betas begin with a step from s = 2e4 to s < 20, where the second slope says nothing about the first. Of even
    timesteps the last step, which is Euler's, is too long: s grows like the root of t there.
    """
    x_T, steps = randn(200, 2, seed=2), [10, 20, 40, 80]
    exact = flow(oracle, x_T, GaussianDiffusion(T, "linear").alpha_bar(T - 1))
    errors = [rms_error(sampled("linear", oracle, "TwoSlopes_{}_0p0_quad", n, x_T), exact) for n in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] <= -1.9, errors
    assert errors[0] < 0.1, errors  # of data 0.7 wide


@pytest.mark.parametrize("schedule", [*SCHEDULES, "own_sigmoid"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_added_sampler_is_deterministic_and_ends_in_range(schedule, objective):
    d = GaussianDiffusion(T, schedule, objective=objective)
    frames = walk(d, "TwoSlopes_{}_0p0", 7, seed=1)
    assert len(frames) == 7 and frames[-1].sample.abs().max() <= 1
    assert torch.equal(frames[-1].sample, walk(d, "TwoSlopes_{}_0p0", 7, seed=2)[-1].sample)


def test_an_added_sampler_calls_the_network_as_often_as_it_likes():
    seen = []

    def model(x, t):
        seen.append(t[0].item())
        return x

    walk(GaussianDiffusion(T), "TwoSlopes_{}_0p0", 4, model)
    assert seen == [999, 749, 749, 499, 499, 249, 249]


def test_an_added_sampler_has_a_sample_info():
    assert SampleSpec.parse("TwoSlopes_10_0p0_quad") == SampleSpec("TwoSlopes", 10, 0.0, quad=True)
    assert str(parse_spec("TwoSlopes_10_0p0", T, "--sample_info")) == "TwoSlopes_10_0p0"
    assert small_run(timestep_num=50).sample(3, "TwoSlopes_5_0p0").shape == (3, 3, 16, 16)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_added_loss_is_torchs(objective):
    d, t = GaussianDiffusion(T, objective=objective, loss_type="own_huber"), torch.tensor([10, 700])
    x_start, noise, output = (randn(2, 1, 4, 4, seed=seed) for seed in (1, 2, 3))
    target = target_of(objective, x_start, noise, d.alphas_cumprod[t].view(-1, 1, 1, 1))
    expected = F.huber_loss(output, target, reduction="none").mean(dim=(1, 2, 3))
    # The same float64 formula.
    torch.testing.assert_close(d.training_losses(lambda x, t: output, x_start, t, noise), expected, rtol=1e-12, atol=0)


def test_an_added_objective_is_edms():
    """F of Karras et al. 2022, eq. 7 and 8, with σ_data = 1: their σ is our σ / a, their D the predicted x_start."""
    d, t = GaussianDiffusion(T, objective="own_edm", clip_denoised=False), torch.tensor([10, 700])
    x_start, noise, F_out = (randn(2, 1, 4, 4, seed=seed) for seed in (1, 2, 3))
    sigma = ((1 - d.alphas_cumprod[t]) / d.alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    c_skip, c_out, c_in = 1 / (sigma**2 + 1), sigma / (sigma**2 + 1).sqrt(), 1 / (sigma**2 + 1).sqrt()
    noisy, seen = x_start + sigma * noise, []
    losses = d.training_losses(lambda x, t: seen.append(x) or F_out, x_start, t, noise)
    theirs = c_skip * noisy + c_out * F_out, c_in * noisy, (x_start - c_skip * noisy) / c_out
    # the same in other units; σ / a is 1e-2 to 2, so that nothing is lost
    torch.testing.assert_close((d.predict_x_start(F_out, seen[0], t), seen[0]), theirs[:2], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(losses, (F_out - theirs[2]).abs().mean((1, 2, 3)), rtol=1e-10, atol=0)
    v = GaussianDiffusion(T, objective="pred_v", clip_denoised=False)  # v prediction is this, with the other sign
    torch.testing.assert_close(v.predict_x_start(-F_out, seen[0], t), theirs[0], rtol=1e-10, atol=1e-10)


def test_an_added_objective_is_sampled_and_not_exported(tmp_path):
    run = small_run(objective="own_edm", timestep_num=50)
    assert run.sample(3, "TwoSlopes_5_0p0").shape == (3, 3, 16, 16)
    with pytest.raises(ConfigError, match="pred_noise, pred_x0, pred_v, not own_edm"):
        export_folder(run, tmp_path / "sprites")


@pytest.mark.slow
def test_a_training_uses_all_additions(tmp_path):
    settings = {
        "beta_schedule": "own_sigmoid",
        "loss_type": "own_huber",
        "objective": "own_edm",
        "preview_info": "TwoSlopes_3_0p0",
    }
    settings |= {"timestep_density": "logit_normal"}
    run = train(tmp_path, settings=settings)
    assert run.returncode == 0, run.stderr
    content = torch.load(tmp_path / "digits" / "digits.pt", weights_only=True)
    assert {key: content["recipe"][key] for key in settings} == settings
    assert (tmp_path / "digits" / "preview_00000006.png").exists()
