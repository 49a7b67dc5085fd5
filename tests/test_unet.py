"""The network: the published one exactly, and smaller ones that a recipe may describe."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from helpers.networks import noisy, published_unet, randomise

from models import UNet, build_model
from models.blocks import ResidualBlock, Stage, timestep_embedding
from models.layout import Conv2d

PUBLISHED = Path(__file__).parent / "helpers" / "published_unet_state_dict.json"


# --- the published network ---


def test_the_default_network_has_the_published_names_and_shapes():
    model = UNet()
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    assert shapes == json.loads(PUBLISHED.read_text())
    assert sum(p.numel() for p in model.parameters()) == 35_741_699


def test_the_grey_network_differs_only_in_its_first_and_last_convolution():
    published = json.loads(PUBLISHED.read_text())
    grey = {name: list(p.shape) for name, p in UNet(image_channel=1).state_dict().items()}
    assert list(grey) == list(published)
    assert {name: shape for name, shape in grey.items() if shape != published[name]} == {
        "down_blocks.0.0.weight": [128, 1, 3, 3],
        "out.2.weight": [1, 128, 3, 3],
        "out.2.bias": [1],
    }


@pytest.mark.parametrize(
    "model_channels, image_channel, height, width",
    [pytest.param(128, 3, 16, 24, marks=pytest.mark.slow), (32, 3, 32, 32), (32, 1, 32, 32)],
)
def test_the_forward_pass_equals_the_published_network(model_channels, image_channel, height, width):
    groups = None if model_channels == 128 else 32  # None: the default is tested too
    model = UNet(image_channel=image_channel, model_channels=model_channels, norm_groups=groups)
    model = randomise(model.double().eval())
    x = noisy(2, image_channel, height, width, dtype=torch.float64)
    t = torch.tensor([3, 871])
    with torch.no_grad():
        ours = model(x, t)
        # The sinusoids are float32 by definition, and have their own test.
        theirs = published_unet(model.state_dict(), x, timestep_embedding(t, model_channels).double())
    # 30 layers of float64 arithmetic in another order: about 1e-14 relative to the size of the output.
    assert (ours - theirs).abs().max() < 1e-9 * theirs.abs().max()


def test_a_patch_is_one_position_of_a_network_with_more_channels():
    """By hand: the pixels of each 2x2 square as channels, the network without patches, and back."""
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
    patched = randomise(UNet(image_size=16, image_channel=3, patch_size=2, **sizes).double().eval())
    plain = UNet(image_size=8, image_channel=12, **sizes).double().eval()
    plain.load_state_dict(patched.state_dict())
    x, t = noisy(2, 3, 16, 24, dtype=torch.float64), torch.tensor([5, 800])
    with torch.no_grad():
        inside = plain(x.view(2, 3, 8, 2, 12, 2).permute(0, 1, 3, 5, 2, 4).reshape(2, 12, 8, 12), t)
        expected = inside.view(2, 3, 2, 2, 8, 12).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 16, 24)
        torch.testing.assert_close(patched(x, t), expected)
        torch.testing.assert_close(UNet(patch_size=1)(x[:, :, :, :16].float(), t), torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="patch_size must be a power of 2, not 3"):
        UNet(patch_size=3)
    with pytest.raises(ValueError, match="image_size 24 does not fit: .* a multiple of 16"):
        UNet(image_size=24, patch_size=2)


def test_a_fresh_network_predicts_zero():
    """Its last convolution starts at zero, as in Ho et al. 2020."""
    assert not UNet(model_channels=16)(noisy(2, 3, 32, 32), torch.tensor([0, 999])).any()


@pytest.mark.parametrize("width", [16, 128])
def test_the_time_embedding_equals_diffusers(width):
    t = torch.arange(0, 4000, 7)
    theirs = get_timestep_embedding(t, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    ours = timestep_embedding(t, width)
    assert ours.dtype == torch.float32
    # Neighbouring float32 angles near 4000 are 2.4e-4 apart, and the frequencies may differ by a rounding or two.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


# --- other networks ---


@pytest.mark.parametrize(
    "keywords",
    [
        {"model_channels": 16, "channel_mult": (1, 2), "image_size": 8},
        {"model_channels": 32, "channel_mult": (1, 2, 3, 4), "image_size": 8, "image_channel": 1},
        {"model_channels": 48, "image_size": 24, "num_heads": 3, "num_res_blocks": 1},
        {"model_channels": 16, "image_size": 64, "num_res_blocks": 1, "dropout": 0.3},
        {"model_channels": 16, "image_size": 24, "attention_resolutions": (12, 6)},
        {"model_channels": 16, "image_size": 24, "attention_resolutions": (24, 12, 6, 3), "num_heads": 1},
        {"model_channels": 32, "attention_resolutions": (), "channel_mult": (1,), "image_size": 8},
    ],
    ids=str,
)
def test_every_parameter_of_other_networks_learns(keywords):
    model = randomise(build_model(**keywords))
    x = noisy(2, model.image_channel, *[keywords.get("image_size", 32)] * 2)
    output = model(x, torch.tensor([0, 999]))
    assert output.shape == x.shape and output.isfinite().all()
    output.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_attention_is_where_the_recipe_puts_it():
    def attended(**keywords):
        names = UNet(model_channels=16, **keywords).state_dict()
        return {name.split(".qkv")[0] for name in names if "qkv" in name}

    assert attended(attention_resolutions=()) == {"middle_block.1"}
    # two residual blocks at 16 pixels on the way down (4, 5), three on the way up (6, 7, 8)
    expected = {f"down_blocks.{i}.1" for i in (4, 5)} | {f"up_blocks.{i}.1" for i in (6, 7, 8)}
    assert attended(attention_resolutions=(16,)) == expected | {"middle_block.1"}


def test_dropout_acts_only_in_training():
    model = randomise(UNet(model_channels=16, dropout=0.5))
    x, t = noisy(1, 3, 32, 32), torch.tensor([500])
    assert not torch.equal(model(x, t), model(x, t))
    model.eval()
    assert torch.equal(model(x, t), model(x, t))


@pytest.mark.parametrize("width", [16, 32, 48])
def test_narrow_networks_depend_on_the_timestep(width):
    def effect_of_t(block):
        """How much another embedding changes what the block adds to its shortcut, relative to that."""
        x = noisy(2, block.conv1[0].num_channels, 8, 8)
        first, second = (block(x, noisy(2, 4 * width, seed=s)) - block.shortcut(x) for s in (2, 3))
        return ((first - second).std() / first.std()).item()

    model = randomise(UNet(model_channels=width))
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    # 0.14 to 0.36 with enough channels per group, as with the published 128 channels.
    assert min(effect_of_t(block) for block in blocks) > 0.05
    # With one channel per group GroupNorm would subtract the embedding again, up to float32 roundings.
    assert effect_of_t(randomise(ResidualBlock(width, width, 4 * width, groups=width, dropout=0))) < 1e-4


def test_a_stage_calls_every_kind_of_convolution_without_the_embedding():
    x, kinds = torch.randn(1, 2, 4, 4), (torch.nn.Conv2d, Conv2d, type("Other", (torch.nn.Conv2d,), {}))
    assert Stage(*(kind(2, 2, 1) for kind in kinds))(x, torch.zeros(1, 8)).shape == x.shape


# --- what does not fit together ---


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"image_size": 28}, "image_size 28 .* multiple of 8, such as 24 or 32"),
        ({"image_size": 30, "channel_mult": (1, 2, 4)}, "image_size 30 .* multiple of 4, such as 28 or 32"),
        ({"attention_resolutions": (7,)}, "no feature map is 7 pixels wide; they are 32, 16, 8, 4"),
        ({"model_channels": 33}, "model_channels must be even .* not 33"),
        ({"num_heads": 0}, "num_heads must all be at least 1"),
        ({"channel_mult": ()}, "channel_mult, .* at least 1"),
        ({"num_heads": 3}, "num_heads=3 does not divide .* 256"),
        ({"num_heads": 32, "model_channels": 16, "attention_resolutions": (32,)}, "num_heads=32 .* 16 chan"),
        ({"dropout": 1.5}, "dropout"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_together_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message) as refusal:
        build_model(**keywords)
    assert "\n" not in str(refusal.value)


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="model_chanels"):
        build_model(model_chanels=64)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 1, 32, 32), "built for 3 channels and was given 1"),
        ((1, 3, 28, 28), "multiple of 8, such as 24 or 32"),
        ((1, 3, 32, 20), "32x20 .* multiple of 8, such as 16 or 24"),
    ],
)
def test_pictures_that_the_network_was_not_built_for_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        UNet(model_channels=16)(torch.zeros(shape), torch.tensor([0]))


# --- labels ---


def test_a_network_with_labels_starts_with_the_other_weights_of_one_without():
    plain, labelled = (seeded_unet(num_classes=num_classes).state_dict() for num_classes in (None, 5))
    assert set(labelled) - set(plain) == {"label_embed.weight"} and labelled["label_embed.weight"].shape == (6, 32)
    assert all(torch.equal(labelled[name], plain[name]) for name in plain)


def test_a_label_is_added_to_the_time_embedding():
    model = randomise(seeded_unet(num_classes=5)).double()
    x, t, labels = noisy(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 500, 999]), torch.tensor([4, 0, 5])
    plain = seeded_unet().double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "label_embed.weight"})
    for i, label in enumerate(labels):  # in the bias of the last layer of the time embedding
        with torch.no_grad():
            plain.time_embed[2].bias.copy_(model.time_embed[2].bias + model.label_embed.weight[label])
        torch.testing.assert_close(model(x, t, labels)[i], plain(x, t)[i], rtol=1e-10, atol=1e-10)
    assert torch.equal(model(x, t), model(x, t, torch.full((3,), 5)))  # no labels are the last row


def test_features_are_what_the_way_down_and_the_middle_compute_without_noise_and_label():
    model, x, seen = seeded_unet(patch_size=2, num_classes=3), torch.randn(2, 1, 16, 16), []
    randomise(model)
    for stage in [*model.down_blocks[1:], model.middle_block]:
        stage.register_forward_hook(lambda stage, args, output: seen.append(output))
    model(x, torch.tensor([0, 0]), torch.tensor([3, 3]))
    expected = seen.copy()
    maps = model.features(x)
    assert len(maps) == len(expected) and all(map(torch.equal, maps, expected))


@pytest.mark.slow
def test_a_network_with_labels_compiles_as_a_whole():
    model = randomise(seeded_unet(num_classes=5))
    x, t, labels = noisy(3, 1, 8, 8), torch.tensor([0, 500, 999]), torch.tensor([4, 0, 5])
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(x, t, labels), model(x, t, labels))


def seeded_unet(**keywords):
    torch.manual_seed(0)
    return UNet(8, 1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, num_heads=2, **keywords)
