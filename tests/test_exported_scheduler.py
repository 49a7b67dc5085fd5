"""The scheduler of an exported folder as its users have it, also in diffusers' other solvers; and the folder's card."""

import re

import diffusers
import pytest
import torch
from helpers.networks import small_run
from helpers.samplers import SCHEDULES, all_pairs, randn, seeded

import sharing.model_card
from diffusion import GaussianDiffusion, SampleSpec, sample
from runs.recipe import plain_recipe
from sharing.diffusers_scheduler import PREDICTION_TYPES, TRIED, diffusion_keys, scheduler_configuration

NEW = {"thresholding", "sample_max_value", "dynamic_thresholding_ratio"}
MEAN, SPREAD, STEPS = 0.3, 0.25, 20
# our sampler, and by how much theirs may differ: float32 tables; UniPC's second step has other coefficients there
OURS = {"DDIM": ("DDIM", 1e-5), "UniPCMultistep": ("UniPC", 0.02), "DPMSolverMultistep": ("DPMpp", 1e-5)}


def configuration(objective="pred_noise", schedule="cosine", T=1000, **keys):
    recipe = plain_recipe("X", objective=objective, beta_schedule=schedule, timestep_num=T, **keys)
    return scheduler_configuration(recipe, GaussianDiffusion(T, schedule))


def nearly_perfect(d):
    """The network of pictures from N(MEAN, SPREAD²), whose noise is off by 0.01, as that of any trained one is."""
    off = 0.01 * randn(1, 1, 4, 4, seed=9)

    def network(x, t):
        ac = d.alphas_cumprod[t].view(-1, 1, 1, 1)
        noise = (1 - ac).sqrt() * (x - ac.sqrt() * MEAN) / (ac * SPREAD**2 + 1 - ac) + off
        x_start = ((x - (1 - ac).sqrt() * noise) / ac.sqrt()).clamp(-1, 1)
        v = ac.sqrt() * noise - (1 - ac).sqrt() * x_start
        return {"pred_noise": noise, "pred_x0": x_start, "pred_v": v}[d.objective]

    return network


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
@pytest.mark.parametrize("name, objective, schedule", all_pairs(TRIED, PREDICTION_TYPES, SCHEDULES))
def test_the_solvers_that_the_card_names_stay_in_range_and_draw_our_samples(name, objective, schedule):
    d = GaussianDiffusion(1000, schedule, objective=objective)
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(configuration(objective, schedule))
    keywords = {"DDPM": {"generator": seeded(3)}, "DDIM": {"use_clipped_model_output": True}}.get(name, {})
    network, x = nearly_perfect(d), randn(64, 1, 4, 4, seed=1)
    method, tolerance = OURS.get(name, ("DDPM", None))
    ours = sample(d, network, x, SampleSpec(method, STEPS, 0.0), generator=seeded(4))
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.repeat(len(x))), t, x, **keywords).prev_sample
    assert x.abs().max() <= 1 + 1e-9  # DDPM there adds noise of 1e-10 in the last step
    if tolerance:
        torch.testing.assert_close(x, ours, rtol=0, atol=tolerance)
    else:  # with other noise: the mean and spread of 1,024 numbers, to three standard errors of 0.25
        assert x.mean().item() == pytest.approx(ours.mean().item(), abs=0.033)
        assert x.std().item() == pytest.approx(ours.std().item(), abs=0.024)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_the_schedulers_that_knew_clipping_before_give_the_same_to_the_bit(name, dtype):
    """As exports had it until thresholding was written beside it."""
    written = configuration()
    before = {key: value for key, value in written.items() if key not in NEW}
    assert written.keys() - before.keys() == NEW and before["clip_sample"]
    x, output = randn(4, 3, 8, 8, seed=1).to(dtype), randn(4, 3, 8, 8, seed=2).to(dtype)
    for t in (999, 979, 499, 19):
        ends = []
        for config in (written, before):
            scheduler = getattr(diffusers, f"{name}Scheduler").from_config(config)
            scheduler.set_timesteps(50)
            ends.append(scheduler.step(output, t, x, generator=seeded(3)))
        assert torch.equal(ends[0].pred_original_sample, ends[1].pred_original_sample)
        assert torch.equal(ends[0].prev_sample, ends[1].prev_sample)


@pytest.mark.parametrize("clips", [True, False])
def test_an_import_accepts_what_an_export_writes_and_wrote(clips):
    written = configuration(clip_denoised=clips)
    before = {key: value for key, value in written.items() if key not in NEW}
    for config in (written, before):
        assert diffusion_keys(diffusers.DDPMScheduler(**config))["clip_denoised"] is clips
    dynamic = diffusers.DDPMScheduler(**written | {"thresholding": True, "sample_max_value": 1.5})
    with pytest.raises(ValueError, match="sample_max_value 1.5"):
        diffusion_keys(dynamic)


@pytest.mark.parametrize("T, steps", [(1000, 50), (77, 77), (94, 94), (120, 60), (31, 31), (4000, 50)])
def test_the_card_says_how_the_network_was_trained(tmp_path, monkeypatch, T, steps):
    monkeypatch.setattr(sharing.model_card, "save_grid", lambda *_: None)
    settings = {"optimizer": "muon", "loss_weight": "min_snr", "lr_schedule": "cosine", "warmup_steps": 20}
    run = small_run(timestep_num=T, num_classes=3, label_dropout=0.2, learning_rate=4e-3, grad_clip=1.0, **settings)
    run.sample = lambda *_, **__: None
    sharing.model_card.write_card(run, tmp_path, "sprites")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for text in (*(f"{key}={value}" for key, value in settings.items()), "loss_type=l1", "grad_clip=1.0"):
        assert text in card
    assert "label_dropout=0.2" in card and "learning_rate=0.004" in card and "Adam" not in card
    assert int(re.search(r"num_inference_steps=(\d+)", card)[1]) == steps and T % steps == 0
    assert all(name in card for name in TRIED)
