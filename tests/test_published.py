"""The published checkpoints: weights in BGR without a recipe."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from helpers.networks import noisy, published_unet

from files.errors import CheckpointError, ConfigError
from models import UNet
from runs.run import load_run

NAMES = json.loads((Path(__file__).parent / "helpers" / "published_unet_state_dict.json").read_text())
BGR = [2, 1, 0]


def published(file, width=128, channel=3):
    """Writes such a file with random weights; returns them. Names and shapes are those of the published list."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, shape in NAMES.items():
        shape = [n * width // 128 if n >= 128 else n for n in shape]
        if channel == 1:
            shape = [1 if n == 3 and (name, i) in ENDS else n for i, n in enumerate(shape)]
        weights[name] = torch.randn(shape, generator=generator) * max(1, torch.Size(shape[1:]).numel()) ** -0.5
    torch.save({"epoch": 599, "unet_model": weights}, file)
    return weights


ENDS = {("down_blocks.0.0.weight", 1), ("out.2.weight", 0), ("out.2.bias", 0)}  # axes of length C


@pytest.mark.parametrize("width, channel", [pytest.param(128, 3, marks=pytest.mark.slow), (32, 3), (64, 1)])
def test_a_published_checkpoint_is_the_published_network_in_rgb(tmp_path, width, channel):
    """The other side is written from the format's description alone, and sees BGR; 32 groups at every width."""
    weights = published(tmp_path / "flower102_size64.pt", width, channel)
    run = load_run(tmp_path / "flower102_size64.pt", image_size=16, image_channel=channel)
    assert (run.weights, run.recipe["image_channel"], run.recipe["model_channels"]) == ("raw", channel, width)
    usual = {"timestep_num": 1000, "beta_schedule": "cosine", "objective": "pred_noise"}
    assert usual.items() <= run.recipe.items()
    x, t = noisy(2, channel, 16, 16), torch.tensor([7, 900])
    swap = BGR if channel == 3 else [0]
    emb = get_timestep_embedding(t, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    with torch.no_grad():
        ours, theirs = run.model(x, t), published_unet(weights, x[:, swap], emb)[:, swap]
    # random weights make outputs of order 1; another order of sums leaves 1e-6 in float32, over a dozen layers
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_schedule_and_timesteps_come_from_the_flags(tmp_path):
    published(tmp_path / "x.pt", 32)
    run = load_run(tmp_path / "x.pt", image_size=16, timestep_num=400, beta_schedule="linear")
    assert (run.diffusion.timestep_num, run.recipe["beta_schedule"]) == (400, "linear")


def test_it_can_be_sampled_on_any_machine(in_process, tmp_path):
    published(tmp_path / "flower102_size64.pt", 32)
    sample = ("test_solver.py", "--model_path", tmp_path / "flower102_size64.pt", "--test_mode", "random_gen")
    sample += ("--sample_info", "DDIM_2_0p0", "--sample_num", 2, "--device", "cpu", "--save_dir", tmp_path / "results")
    asked = in_process(*sample)
    assert asked.returncode == 2 and len(asked.stderr.splitlines()) == 1
    for shown in ("--image_size", "image_channel 3", "model_channels 32", "channel_mult [1, 2, 2, 2]"):
        assert shown in asked.stderr
    drawn = in_process(*sample, "--image_size", 16, "--image_channel", 3)
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((tmp_path / "results").glob("*_flower102_size64_DDIM_2_0p0_final.png"))) == 1


@pytest.mark.parametrize(
    "name", ["time_embed.0.weight", "down_blocks.0.0.weight", "down_blocks.11.1.qkv.weight", "out.2.bias"]
)
@pytest.mark.parametrize("wrong", ["missing", "renamed", "another shape"])
def test_each_wrong_key_is_named(tmp_path, name, wrong):
    weights = published(tmp_path / "x.pt", 32)
    if wrong == "another shape":
        weights[name] = weights[name][:1]
    elif wrong == "renamed":
        weights[f"old.{name}"] = weights.pop(name)
    else:
        del weights[name]
    torch.save({"epoch": 1, "unet_model": weights}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=name):
        load_run(tmp_path / "x.pt", image_size=16)


@pytest.mark.parametrize(
    "content, says",
    [
        ({"epoch": 1, "unet_model": {}}, "down_blocks.0.0.weight"),
        ({"epoch": 1, "unet_model": [1]}, "its unet_model is a list"),
        ({"epoch": 1, "unet_model": {"down_blocks.0.0.weight": 3}}, "not those of a published checkpoint"),
    ],
)
def test_a_file_that_is_almost_one_is_refused(tmp_path, content, says):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=says):
        load_run(tmp_path / "x.pt", image_size=16)


@pytest.mark.parametrize("name", ["extra.weight", "down_blocks.99.0.weight", "down_blocks.x.weight"])
def test_an_extra_weight_is_named(tmp_path, name):
    weights = published(tmp_path / "x.pt", 32)
    torch.save({"epoch": 1, "unet_model": weights | {name: torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=name):
        load_run(tmp_path / "x.pt", image_size=16)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("beside", [None, {}, {"optimizer": {}, "args": "--lr 1"}])
def test_weights_of_a_wrapped_network_alone_or_beside_other_entries_are_the_same(tmp_path, prefix, beside):
    weights = published(tmp_path / "x.pt", 32)
    named = {prefix + name: weight for name, weight in weights.items()}
    torch.save(named if beside is None else {"unet_model": named, **beside}, tmp_path / "y.pt")
    first, other = (load_run(tmp_path / name, image_size=16).model.state_dict() for name in ("x.pt", "y.pt"))
    assert all(torch.equal(weight, other[name]) for name, weight in first.items())


def test_flags_that_the_weights_contradict_are_refused(tmp_path):
    published(tmp_path / "x.pt", 32)
    with pytest.raises(ConfigError, match="image_channel=1: .* was trained with 3"):
        load_run(tmp_path / "x.pt", image_size=16, image_channel=1)
    with pytest.raises(CheckpointError, match="image_size 12 does not fit"):
        load_run(tmp_path / "x.pt", image_size=12)
    assert UNet(model_channels=32, norm_groups=32).down_blocks[1][0].conv1[0].num_groups == 32
    with pytest.raises(ValueError, match="norm_groups=32 does not divide model_channels=48"):
        UNet(model_channels=48, norm_groups=32)
