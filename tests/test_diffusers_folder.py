"""Runs as folders that diffusers loads, and diffusers' folders as runs."""

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.networks import noisy, randomise, small_run

from diffusion import GaussianDiffusion, SampleSpec, sample
from models import UNet
from models.diffusers_unet import DiffusersUNet
from sharing.diffusers_folder import export_folder, import_folder
from utils.checkpoint import build
from utils.errors import CheckpointError, ConfigError
from utils.recipe import plain_recipe

# google/ddpm-cifar10-32: one head at 16x16, sines first, frequencies shifted by one, padding on one side only
CIFAR10 = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
# ddpm-ema-flowers-64: six levels, attention in the fifth, 64 heads
FLOWERS = {
    "sample_size": 64, "block_out_channels": (128, 128, 256, 256, 512, 512), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 8,
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4,
}  # fmt: skip
TINY = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
KINDS = {"cifar10": CIFAR10, "flowers": FLOWERS}


def theirs(folder, scheduler=None, flat=False, **config):
    """Writes a pipeline of a UNet2DModel with random weights; returns the UNet."""
    unet = randomise(UNet2DModel(**config)).eval()
    DDPMPipeline(unet, scheduler or DDPMScheduler(clip_sample=True)).save_pretrained(folder)
    if flat:  # as the older ones on the hub are
        for file in [*folder.glob("unet/*"), *folder.glob("scheduler/*")]:
            file.rename(folder / file.name)
        (folder / "unet").rmdir(), (folder / "scheduler").rmdir()
    return unet


def ten_ddim_steps(pipeline, x):
    """The pipeline's own loop, given its noise, in float64: rounding at the noisiest timestep, where 1/sqrt(ᾱ) is
    20,000, would be all that one sees. Timesteps spaced as ours."""
    pipeline.unet.double()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.pipelines.ddim.pipeline_ddim.randn_tensor", lambda *_, **__: x)
        images = pipeline(len(x), num_inference_steps=10, use_clipped_model_output=True, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def same_picture(run, folder, shape):
    x = noisy(*shape, dtype=torch.float64)
    pipeline = DDIMPipeline.from_pretrained(folder)
    drawn = sample(run.diffusion, run.model.double(), x, SampleSpec.parse("DDIM_10_0p0")).clamp(-1, 1)
    torch.testing.assert_close(drawn, ten_ddim_steps(pipeline, x), rtol=0, atol=1e-4)
    assert 0.05 < drawn.std()


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("channel", [1, 3])
@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_an_exported_run_is_the_same_in_diffusers_and_comes_back(tmp_path, objective, channel, betas):
    run = small_run(objective=objective, image_channel=channel, beta_schedule=betas)
    export_folder(run, tmp_path / "sprites")
    assert {file.name for file in (tmp_path / "sprites").iterdir()} == {
        "model_index.json",
        "unet",
        "scheduler",
        "recipe.json",
    }
    assert [file.suffix for file in (tmp_path / "sprites" / "unet").iterdir() if file.suffix != ".json"] == [
        ".safetensors"
    ]
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "sprites")
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    torch.testing.assert_close(pipeline.scheduler.betas.double(), run.diffusion.betas, rtol=1e-5, atol=1e-8)
    x, t = noisy(3, channel, 16, 16), torch.tensor([0, 500, 999])
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t), pipeline.unet(x, t).sample, rtol=0, atol=1e-5)

    back = import_folder(tmp_path / "sprites")
    assert (back.recipe, back.step, back.weights) == (run.recipe, 1234, "ema")
    assert list(back.model.state_dict()) == list(run.model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.model.parameters(), run.model.parameters(), strict=True))
    same_picture(run, tmp_path / "sprites", (2, channel, 16, 16))


@pytest.mark.parametrize(
    "keys",
    [
        {"num_heads": 1, "attention_resolutions": [16, 8, 4]},  # a head each, at two widths
        {"num_heads": 8, "attention_resolutions": [8]},
        {"channel_mult": [1], "num_res_blocks": 1},
        {"norm_groups": 2, "dropout": 0.25, "num_res_blocks": 3, "clip_denoised": False, "timestep_num": 50},
        {"timestep_num": 10, "beta_schedule": "linear"},  # betas that meet their cap
    ],
)
def test_every_shape_of_ours_goes_there_and_back(tmp_path, keys):
    run = small_run(**keys)
    export_folder(run, tmp_path / "sprites")
    for told in (True, False):  # and with nothing of ours in the folder
        if not told:
            (tmp_path / "sprites" / "recipe.json").unlink()
        back = import_folder(tmp_path / "sprites")
        assert isinstance(back.model, UNet) and back.recipe["diffusers_unet"] is None
        assert all(torch.equal(a, b) for a, b in zip(back.model.parameters(), run.model.parameters(), strict=True))
        torch.testing.assert_close(back.diffusion.betas, run.diffusion.betas, rtol=0, atol=0)
        assert (
            back.diffusion.clip_denoised == run.diffusion.clip_denoised
            and back.recipe["dropout"] == run.recipe["dropout"]
        )


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_other_kinds_come_in_and_go_out_again(tmp_path, kind, flat):
    unet = theirs(tmp_path / kind, flat=flat, **KINDS[kind])
    run = import_folder(tmp_path / kind)
    assert isinstance(run.model, DiffusersUNet)
    size = unet.config.sample_size
    x, t = noisy(2, 3, size, size), torch.tensor([3, 800])
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t), unet(x, t).sample, rtol=0, atol=1e-5)
    if flat:
        return
    export_folder(run, tmp_path / "out")
    again = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), unet.parameters(), strict=True))
    assert again.config.attention_head_dim == unet.config.attention_head_dim


def test_a_network_of_another_kind_samples_the_same_picture(tmp_path):
    small = CIFAR10 | {"block_out_channels": (32, 64, 64, 64)}
    theirs(tmp_path / "small", **small)
    run = import_folder(tmp_path / "small")
    assert run.recipe["attention_resolutions"] == [16] and run.recipe["num_heads"] == 1
    same_picture(run, tmp_path / "small", (2, 3, 32, 32))


def test_flowers_without_biases_is_small_run(tmp_path):
    """What decides is what is computed, and not who wrote the folder."""
    config = FLOWERS | {"block_out_channels": (32, 32, 64, 64, 128, 128)}
    unet = randomise(UNet2DModel(**config))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.bias", "to_k.bias", "to_v.bias")):
                parameter.zero_()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "flowers")
    run = import_folder(tmp_path / "flowers")
    # 32 groups where ours would have 8; of its six levels the fifth has attention, at a sixteenth of the size
    expected = {"norm_groups": 32, "channel_mult": [1, 1, 2, 2, 4, 4], "attention_resolutions": [4], "num_heads": 16}
    assert isinstance(run.model, UNet) and {key: run.recipe[key] for key in expected} == expected


@pytest.mark.parametrize(
    "config, says",
    [
        ({"out_channels": 6}, "out_channels 6"),
        ({"in_channels": 4, "out_channels": 4}, "in_channels 4"),
        ({"sample_size": (8, 16)}, "sample_size .8, 16"),
        ({"num_class_embeds": 10}, "num_class_embeds 10"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ({"block_out_channels": (32, 80)}, "block_out_channels"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type fourier"),
        ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, "time_embedding_type learned"),
    ],
)
def test_networks_that_cannot_be_represented_are_refused_by_name(tmp_path, config, says):
    theirs(tmp_path / "tiny", **TINY | config)
    with pytest.raises(CheckpointError, match=says):
        import_folder(tmp_path / "tiny")


@pytest.mark.parametrize(
    "scheduler, says",
    [
        (DDPMScheduler(beta_schedule="scaled_linear"), "beta_schedule scaled_linear"),
        (DDPMScheduler(beta_end=0.03), "from 0.0001 to 0.03"),
        (DDPMScheduler(trained_betas=[0.01] * 100), "trained_betas from 0.01 to 0.01"),
        (DDPMScheduler(variance_type="learned_range"), "variance_type learned_range"),
        (DDPMScheduler(thresholding=True), "thresholding True"),
        (DDPMScheduler(clip_sample_range=2.0), "clip_sample_range 2.0"),
        (DDPMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr True"),
    ],
)
def test_schedules_that_cannot_be_represented_are_refused_by_name(tmp_path, scheduler, says):
    theirs(tmp_path / "tiny", scheduler, **TINY)
    with pytest.raises(CheckpointError, match=says):
        import_folder(tmp_path / "tiny")


def test_what_only_concerns_sampling_is_said(tmp_path, capsys):
    theirs(tmp_path / "tiny", DDIMScheduler(prediction_type="v_prediction", clip_sample=False), **TINY)
    run = import_folder(tmp_path / "tiny")
    assert (run.recipe["objective"], run.recipe["clip_denoised"], run.recipe["beta_schedule"]) == (
        "pred_v",
        False,
        "linear",
    )
    assert "timestep_spacing leading is left behind" in capsys.readouterr().out


def test_attention_that_unet2d_cannot_say_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="2 widths .16, 32 channels. with 4 heads"):
        export_folder(small_run(attention_resolutions=[16, 4]), tmp_path / "sprites")


def test_networks_that_differ_are_never_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sharing.diffusers_folder.qkv_biases", lambda unet: [unet.conv_in.bias]
    )  # zeroes what it must not
    with pytest.raises(CheckpointError, match="outputs are .* apart"):
        export_folder(small_run(), tmp_path / "sprites")


def test_diffusers_is_asked_for_by_name(tmp_path, monkeypatch):
    export_folder(small_run(), tmp_path / "sprites")
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    for call in (lambda: export_folder(small_run(), tmp_path / "again"), lambda: import_folder(tmp_path / "sprites")):
        with pytest.raises((ConfigError, CheckpointError), match="pip install diffusers"):
            call()
    foreign = plain_recipe("Sprites", image_size=8, diffusers_unet={"sample_size": 8})
    with pytest.raises(ConfigError, match="pip install diffusers"):
        build(foreign)
    assert GaussianDiffusion().timestep_num == 1000 and UNet(**{"model_channels": 8, "num_heads": 1})
