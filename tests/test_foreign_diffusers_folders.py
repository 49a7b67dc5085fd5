"""Folders that diffusers wrote: which networks and schedules come in, and which are refused."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.networks import noisy, randomise
from helpers.pipelines import equals_ten_ddim_steps, save_pipeline

from files.errors import CheckpointError
from models import UNet, build_model
from models.diffusers_unet import DiffusersUNet, keywords_of
from sharing.diffusers_folder import export_folder, import_folder

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
# the same two, a quarter as wide: GroupNorm's 32 groups allow no fewer channels
SMALL = {
    "cifar10": CIFAR10 | {"block_out_channels": (32, 64, 64, 64)},
    "flowers": FLOWERS | {"block_out_channels": (32, 32, 64, 64, 128, 128)},
}
TINY = {
    "sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


@pytest.mark.parametrize(
    "config, expected",
    [
        (CIFAR10, {"image_size": 32, "channel_mult": [1, 2, 2, 2], "attention_resolutions": [16], "num_heads": 1}),
        (
            FLOWERS,
            {"image_size": 64, "channel_mult": [1, 1, 2, 2, 4, 4], "attention_resolutions": [4], "num_heads": 64},
        ),
    ],
)
def test_the_settings_of_well_known_networks_are_read(config, expected):
    with torch.device("meta"):  # shapes without content: these networks are large
        unet = UNet2DModel(**config)
        keywords = keywords_of(dict(unet.config))
        again = DiffusersUNet(config, **keywords)
    expected |= {"image_channel": 3, "model_channels": 128, "num_res_blocks": 2, "norm_groups": None, "dropout": 0}
    expected |= {"patch_size": None, "num_classes": None}
    assert keywords == expected
    shapes = [{name: p.shape for name, p in network.named_parameters()} for network in (unet, again.unet)]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind, flat", [("cifar10", True), ("flowers", False)])
def test_another_network_is_imported_and_exported_again(tmp_path, kind, flat):
    unet = save_pipeline(tmp_path / kind, flat=flat, **SMALL[kind])
    run = import_folder(tmp_path / kind)
    assert isinstance(run.model, DiffusersUNet)
    size = unet.config.sample_size
    x, t = noisy(2, 3, size, size), torch.tensor([3, 800])
    with torch.no_grad():
        torch.testing.assert_close(run.model(x, t), unet(x, t).sample, rtol=0, atol=1e-5)
    export_folder(run, tmp_path / "out")
    again = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), unet.parameters(), strict=True))
    assert again.config.attention_head_dim == unet.config.attention_head_dim


@pytest.mark.slow
def test_another_network_samples_the_same_pictures(tmp_path):
    save_pipeline(tmp_path / "small", **SMALL["cifar10"])
    run = import_folder(tmp_path / "small")
    assert run.recipe["attention_resolutions"] == [16] and run.recipe["num_heads"] == 1
    equals_ten_ddim_steps(run, tmp_path / "small", (2, 3, 32, 32))


@pytest.mark.slow
def test_a_foreign_network_that_computes_what_our_unet_does_becomes_our_unet(tmp_path):
    """Flowers without the biases that our UNet lacks: what decides is the function, not who wrote the folder."""
    unet = randomise(UNet2DModel(**SMALL["flowers"]))
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name.endswith(("to_q.bias", "to_k.bias", "to_v.bias")):
                parameter.zero_()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "flowers")
    run = import_folder(tmp_path / "flowers")
    # 32 groups, where our default would be 8; of six levels the fifth has attention, at a sixteenth of the size
    expected = {"norm_groups": 32, "channel_mult": [1, 1, 2, 2, 4, 4], "attention_resolutions": [4], "num_heads": 16}
    assert isinstance(run.model, UNet) and {key: run.recipe[key] for key in expected} == expected


@pytest.mark.parametrize(
    "config, says",
    [
        ({"out_channels": 6}, "out_channels 6"),
        ({"in_channels": 4, "out_channels": 4}, "in_channels 4"),
        ({"sample_size": (8, 16, 24)}, "sample_size .8, 16, 24"),
        ({"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type fourier"),
        ({"block_out_channels": (32, 80)}, "block_out_channels"),
    ],
)
def test_a_network_that_cannot_be_represented_is_refused_by_name(tmp_path, config, says):
    save_pipeline(tmp_path / "tiny", **TINY | config)
    with pytest.raises(CheckpointError, match=says):
        import_folder(tmp_path / "tiny")


@pytest.mark.parametrize(
    "settings, keywords, says",
    [
        ({"gated_attention": True}, {}, "gated_attention"),
        ({"norm_num_groups": 7}, {}, "no network can be built"),
        ({}, {"num_heads": 2}, "num_heads .* not 2"),
        ({}, {"image_size": 9}, "image_size 9 .* multiple of 2"),
    ],
)
def test_a_recipe_whose_network_cannot_be_built_is_refused(settings, keywords, says):
    fitting = keywords_of(dict(UNet2DModel(**TINY).config))
    assert isinstance(build_model(diffusers_unet=TINY, **fitting), DiffusersUNet)
    with pytest.raises(ValueError, match=says):
        build_model(diffusers_unet=TINY | settings, **fitting | keywords)


@pytest.mark.parametrize(
    "scheduler, says",
    [
        (DDPMScheduler(trained_betas=[0.01] * 100), "100 betas do not fit timestep_num=1000"),
        (DDPMScheduler(beta_start=0.0), "between 0 and 1"),
        (DDPMScheduler(variance_type="learned_range"), "variance_type learned_range"),
        (DDPMScheduler(prediction_type="flow_prediction"), "prediction_type flow_prediction"),
        (DDPMScheduler(thresholding=True, sample_max_value=1.5), "sample_max_value 1.5"),
        (DDPMScheduler(clip_sample_range=2.0), "clip_sample_range 2.0"),
        (DDPMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr"),
    ],
)
def test_a_schedule_that_cannot_be_represented_is_refused_by_name(tmp_path, scheduler, says):
    save_pipeline(tmp_path / "tiny", scheduler, **TINY)
    with pytest.raises(CheckpointError, match=says):
        import_folder(tmp_path / "tiny")


def test_settings_that_concern_only_sampling_are_reported(tmp_path, capsys):
    save_pipeline(tmp_path / "tiny", DDIMScheduler(prediction_type="v_prediction", clip_sample=False), **TINY)
    recipe = import_folder(tmp_path / "tiny").recipe
    assert (recipe["objective"], recipe["clip_denoised"], recipe["beta_schedule"]) == ("pred_v", False, "linear")
    assert "timestep_spacing leading" in capsys.readouterr().out
