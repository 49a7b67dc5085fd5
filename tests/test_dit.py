"""The transformer: diffusers' DiT exactly, its positions, its patches, and how it begins to learn."""

import copy
from argparse import Namespace

import onnx
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from helpers.networks import noisy, randomise
from onnx.reference import ReferenceEvaluator

from models import DiT, build_model
from models.dit import position_embedding
from sharing.onnx_page import as_onnx
from training.optimizer import OPTIMIZERS, update

TINY = {"image_size": 8, "model_channels": 16, "num_heads": 2, "depth": 2}


class Embedded(torch.nn.Module):
    """In the place of diffusers' embedding of timestep and label, which every block has of its own: ours."""

    def __init__(self, emb):
        super().__init__()
        self.emb = emb

    def forward(self, *_, **__):
        return self.emb


def test_the_forward_pass_equals_diffusers():
    ours = randomise(DiT(**TINY, num_classes=5).double().eval())
    x, t, labels = noisy(3, 3, 8, 8, dtype=torch.float64), torch.tensor([3, 500, 871]), torch.tensor([4, 0, 5])
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "norm_eps": 1e-6}
    theirs = DiTTransformer2DModel(**heads, in_channels=3, out_channels=3, sample_size=8, patch_size=2).double().eval()
    emb = []
    ours.modulation.register_forward_pre_hook(lambda _, inputs: emb.extend(inputs))
    with torch.no_grad():
        output = ours(x, t, labels)
        pairs = [(theirs.proj_out_1, ours.modulation[1]), (theirs.pos_embed.proj, ours.patch_embed)]
        pairs += [(theirs.proj_out_2, ours.out)]
        for block, peer in zip(ours.blocks, theirs.transformer_blocks, strict=True):
            peer.norm1.emb = Embedded(emb[0])
            pairs += [(peer.norm1.linear, block.modulation[1]), (peer.attn1.to_out[0], block.proj)]
            pairs += [(peer.ff.net[0].proj, block.mlp[0]), (peer.ff.net[2], block.mlp[3])]
            qkv = zip(block.qkv.weight.chunk(3), block.qkv.bias.chunk(3), strict=True)
            for linear, (weight, bias) in zip((peer.attn1.to_q, peer.attn1.to_k, peer.attn1.to_v), qkv, strict=True):
                linear.weight.copy_(weight)
                linear.bias.copy_(bias)
        for linear, mine in pairs:
            linear.weight.copy_(mine.weight.view(linear.weight.shape))
            linear.bias.copy_(mine.bias)
        theirs.pos_embed.pos_embed.copy_(position_embedding(4, 4, 16, "cpu")[None])  # theirs have their own test
        colours_last = torch.arange(12).view(3, 4).T.flatten()  # their order of the numbers of a patch
        theirs.proj_out_2.weight.copy_(ours.out.weight[colours_last])
        theirs.proj_out_2.bias.copy_(ours.out.bias[colours_last])
        expected = theirs(x, t, labels).sample
    assert output.abs().mean() > 0.1
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)  # float64 in another order


def test_the_positions_equal_diffusers_and_tell_rows_from_columns():
    theirs = get_2d_sincos_pos_embed(16, 5, base_size=5)  # sin and cos of the column, then of the row
    column, row = (half.unflatten(1, (2, 4)).flip(1).flatten(1) for half in theirs.chunk(2, dim=1))
    torch.testing.assert_close(position_embedding(5, 5, 16, "cpu"), torch.cat([row, column], dim=1).float())
    wide = position_embedding(2, 3, 16, "cpu")  # tokens row by row
    torch.testing.assert_close(wide.view(2, 3, 16), position_embedding(5, 5, 16, "cpu").view(5, 5, 16)[:2, :3])
    assert len(torch.unique(wide, dim=0)) == 6


@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_a_square_of_pixels_becomes_a_token_and_comes_back_to_its_place(patch_size):
    """With branches that add nothing and the same matrix in and out, the network is x + a constant."""
    width = 4 * patch_size**2
    model = DiT(6 * patch_size, 4, width, num_heads=1, patch_size=patch_size, depth=1)
    model.norm = torch.nn.Identity()
    matrix = torch.linalg.qr(noisy(width, width, dtype=torch.float64))[0]
    with torch.no_grad():
        model.patch_embed.weight.copy_(matrix)
        model.out.weight.copy_(matrix.T)
    x, t = noisy(2, 4, 2 * patch_size, 5 * patch_size), torch.tensor([0, 9])
    torch.testing.assert_close(model(x, t) - model(torch.zeros_like(x), t), x, rtol=0, atol=1e-5)  # float32 sums


def test_a_fresh_network_predicts_zero_and_its_blocks_change_nothing():
    model, tokens = DiT(**TINY), noisy(2, 16, 16)
    assert not model(noisy(2, 3, 8, 8), torch.tensor([0, 999])).any()
    assert all(torch.equal(block(tokens, noisy(2, 16, seed=3)), tokens) for block in model.blocks)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_begins_to_learn_and_soon_with_all_parameters(optimizer):
    """The output first, then what modulates it, then the rest. Four pictures of four classes: x is no help."""
    torch.manual_seed(0)
    model = DiT(**TINY, num_classes=4)
    optimizer = OPTIMIZERS[optimizer](model.parameters(), lr=2e-2, fused=True)
    target, t, labels, losses = noisy(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.arange(4), []
    for step in range(60):
        optimizer.zero_grad()
        loss = (model(noisy(4, 3, 8, 8, seed=step), t, labels) - target).square().mean()
        loss.backward()
        if step == 3:
            for name, weight in model.named_parameters():
                assert weight.grad.isfinite().all() and weight.grad.any(), name
        update(optimizer, 2e-2, None)
        losses.append(loss.item())
    # without the labels the best is the mean of the four pictures, which leaves 3/4 of their variance
    assert losses[0] == pytest.approx(target.square().mean().item()) and losses[-1] < 0.7 * losses[0]


def test_a_label_is_added_to_the_time_embedding():
    model = randomise(DiT(**TINY, num_classes=5)).double()
    plain = DiT(**TINY).double()
    x, t, labels = noisy(3, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 500, 999]), torch.tensor([4, 0, 5])
    weights = model.state_dict()
    rows = weights.pop("label_embed.weight")
    for i, label in enumerate(labels):  # in the bias of the last layer of the time embedding
        plain.load_state_dict(weights | {"time_embed.2.bias": weights["time_embed.2.bias"] + rows[label]})
        torch.testing.assert_close(model(x, t, labels)[i], plain(x, t)[i])
    assert torch.equal(model(x, t), model(x, t, torch.full((3,), 5)))  # no labels are the last row
    assert not torch.allclose(model(x, t, labels)[:2], model(x, t)[:2])


def test_half_precision_keeps_the_sum_of_all_blocks_in_float32():
    """A bfloat16 has 8 bits: what a block adds would be rounded to 1/256 of the sum."""
    model, kinds = randomise(DiT(**TINY)).eval(), []
    model.norm.register_forward_pre_hook(lambda _, inputs: kinds.append(inputs[0].dtype))
    x, t = noisy(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, t)
    assert kinds == [torch.float32] and output.dtype == torch.bfloat16
    assert (output - model(x, t)).abs().mean() < 0.02 * output.abs().mean()  # a few roundings of 1/256


def test_dropout_acts_only_in_training():
    model, x, t = randomise(DiT(**TINY, dropout=0.5)), noisy(1, 3, 8, 8), torch.tensor([500])
    assert not torch.equal(model(x, t), model(x, t))
    model.eval()
    assert torch.equal(model(x, t), model(x, t))


def test_copies_other_layouts_and_sizes_compute_the_same():
    model = randomise(DiT(**TINY | {"image_size": (8, 12)})).eval()
    x, t = noisy(2, 3, 8, 12), torch.tensor([3, 700])
    expected = model(x, t)
    assert torch.equal(copy.deepcopy(model)(x, t), expected)
    last = {"memory_format": torch.channels_last}
    torch.testing.assert_close(model.to(**last)(x.to(**last), t), expected)
    assert model(x[:, :, :6, :10], t).shape == (2, 3, 6, 10)  # not the size that it was built for
    assert model.to("meta")(x.to("meta"), t.to("meta")).shape == x.shape
    assert sum(weight.numel() for weight in model.buffers()) == 0


@pytest.mark.slow
def test_it_compiles_as_a_whole():
    model, x = randomise(DiT(**TINY, num_classes=5)), noisy(3, 3, 8, 8)
    inputs = (x, torch.tensor([0, 500, 999]), torch.tensor([4, 0, 5]))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")  # of the older exporter
def test_it_is_exported_as_onnx(tmp_path):
    """For the web page; ONNX's reference evaluator computes the same, in any batch. Errors of float32 add up."""
    model = randomise(DiT(**TINY, num_classes=5).eval())
    recipe = {"image_size": 8, "image_channel": 3, "class_names": list("abcde")}
    exported = as_onnx(Namespace(model=model, recipe=recipe), tmp_path / "part.onnx")
    given = {"x": torch.randn(3, 3, 8, 8), "t": torch.tensor([0, 500, 999]), "labels": torch.tensor([4, 0, 5])}
    (output,) = ReferenceEvaluator(onnx.load_from_string(exported)).run(None, {k: v.numpy() for k, v in given.items()})
    torch.testing.assert_close(torch.from_numpy(output), model(*given.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"image_size": 30, "patch_size": 4}, "image_size 30 .* multiple of 4"),
        ({"image_size": (32, 33)}, "image_size 32x33 .* multiple of 2"),
        ({"model_channels": 30, "num_heads": 3}, "model_channels=30 .* multiple of 4"),
        ({"num_heads": 3}, "model_channels=128 .* num_heads=3"),
        ({"depth": 0}, "depth must all be at least 1"),
        ({"image_size": (32, 0)}, "image_size, .* at least 1"),
        ({"dropout": 1.5}, "dropout"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_together_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message) as refusal:
        build_model("dit", **keywords)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "shape, message", [((1, 1, 8, 8), "3 channels .* given 1"), ((1, 3, 8, 7), "8x7 .* multiple of 2")]
)
def test_pictures_that_the_network_was_not_built_for_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        DiT(**TINY)(torch.zeros(shape), torch.tensor([0]))
