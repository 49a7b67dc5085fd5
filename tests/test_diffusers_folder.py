"""Our runs as folders that diffusers loads, and back."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from helpers.networks import noisy, small_run
from helpers.pipelines import equals_ten_ddim_steps

from diffusion import GaussianDiffusion
from files.errors import CheckpointError, ConfigError
from models import UNet
from runs.network import build
from runs.recipe import plain_recipe
from sharing.diffusers_folder import export_folder, import_folder


def equal_weights(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, channel, betas", [("pred_noise", 1, "linear"), ("pred_x0", 3, "cosine"), ("pred_v", 3, "linear")]
)
def test_an_exported_run_computes_the_same_in_diffusers_and_comes_back(tmp_path, objective, channel, betas):
    run = small_run(objective=objective, image_channel=channel, beta_schedule=betas)
    folder = tmp_path / "sprites"
    export_folder(run, folder)
    assert {file.name for file in folder.iterdir()} == {"model_index.json", "unet", "scheduler", "recipe.json"}
    assert [file.suffix for file in (folder / "unet").iterdir() if file.suffix != ".json"] == [".safetensors"]
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    torch.testing.assert_close(pipeline.scheduler.betas.double(), run.diffusion.betas, rtol=1e-5, atol=1e-8)
    x, t = noisy(3, channel, 16, 16), torch.tensor([0, 500, 999])
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t), pipeline.unet(x, t).sample, rtol=0, atol=1e-5)

    back = import_folder(folder)
    assert (back.recipe, back.step, back.weights) == (run.recipe, 1234, "ema")
    assert list(back.model.state_dict()) == list(run.model.state_dict())
    assert equal_weights(back.model, run.model)
    equals_ten_ddim_steps(run, folder, (2, channel, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {"num_heads": 1, "attention_resolutions": [16, 8, 4]},  # attention at two widths, with one head each
        {"num_heads": 8, "attention_resolutions": [8], "num_res_blocks": 2},
        {"channel_mult": [1], "num_res_blocks": 1, "beta_schedule": "flow"},
        {"norm_groups": 2, "dropout": 0.25, "num_res_blocks": 3, "clip_denoised": False, "timestep_num": 50},
        {"timestep_num": 10, "beta_schedule": "linear"},  # betas that reach their cap
    ],
)
def test_every_shape_of_our_network_is_exported_and_comes_back(tmp_path, keys):
    run = small_run(**keys)
    export_folder(run, tmp_path / "sprites")
    for with_recipe in (True, False):
        if not with_recipe:
            (tmp_path / "sprites" / "recipe.json").unlink()
        back = import_folder(tmp_path / "sprites")
        assert isinstance(back.model, UNet) and back.recipe["diffusers_unet"] is None
        assert equal_weights(back.model, run.model)
        torch.testing.assert_close(back.diffusion.betas, run.diffusion.betas, rtol=0, atol=0)
        assert back.diffusion.clip_denoised == run.diffusion.clip_denoised
        assert back.recipe["dropout"] == run.recipe["dropout"]


def test_attention_that_unet2d_cannot_represent_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="2 widths .16, 32 channels. with 4 heads"):
        export_folder(small_run(attention_resolutions=[16, 4]), tmp_path / "sprites")


def test_an_export_whose_output_differs_is_refused(tmp_path, monkeypatch):
    # zeroes a bias that the network has
    monkeypatch.setattr("sharing.diffusers_folder.qkv_biases", lambda unet: [unet.conv_in.bias])
    with pytest.raises(CheckpointError, match="outputs of the two networks differ"):
        export_folder(small_run(), tmp_path / "sprites")


def test_without_diffusers_its_folders_are_refused_with_advice(tmp_path, monkeypatch):
    export_folder(small_run(), tmp_path / "sprites")
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    for call in (lambda: export_folder(small_run(), tmp_path / "again"), lambda: import_folder(tmp_path / "sprites")):
        with pytest.raises((ConfigError, CheckpointError), match="pip install diffusers"):
            call()
    foreign = plain_recipe("Sprites", image_size=8, diffusers_unet={"sample_size": 8})
    with pytest.raises(ConfigError, match="pip install diffusers"):
        build(foreign)
    assert GaussianDiffusion().timestep_num == 1000 and UNet(model_channels=8, num_heads=1)  # all else works
