"""The plan of a training: batches, steps and memory, before anything is computed."""

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion import GaussianDiffusion
from files.errors import ConfigError
from models import build_model
from runs.config import load_recipe
from runs.network import build
from training.plan import activation_bytes, check_batch, describe, total_steps, without_impossible_graphs

CONFIG = Path(__file__).parent.parent / "config.yaml"


def digits(*overrides):
    recipe = load_recipe(CONFIG, "Digits", ["batch_size=8", *overrides])
    return recipe, *build(recipe)


def described(*plan, images, world=1, device="cpu"):
    check_batch(plan[0], images, world)
    return describe(*plan, images, world, torch.device(device))


def test_fewer_pictures_than_a_batch_are_refused():
    with pytest.raises(ConfigError, match="Digits: its 7 pictures are fewer than batch_size=8"):
        described(*digits(), images=7)
    assert "2,000.0 epochs of 1" in described(*digits(), images=8)


def test_a_batch_is_divided_evenly_or_refused():
    plan = digits("gradient_accumulation=2")
    assert "(8, 1, 8, 8), 2 at a time in 2 process(es)" in described(*plan, images=8, world=2)
    with pytest.raises(ConfigError, match="batch_size=8 is not a multiple of 6, 3 process"):
        described(*plan, images=8, world=3)


@pytest.mark.parametrize("parts, world, device", [(1, 1, "cpu"), (1, 2, "cuda"), (2, 1, "cuda"), (1, 1, "cuda")])
def test_cuda_graphs_need_one_process_on_cuda_and_whole_batches(parts, world, device, capsys):
    recipe, possible = {"compile": "graphs", "gradient_accumulation": parts}, (parts, world, device) == (1, 1, "cuda")
    found = without_impossible_graphs(recipe, world, torch.device(device))
    assert found == recipe | ({} if possible else {"compile": "auto"}) and bool(capsys.readouterr().out) != possible
    assert without_impossible_graphs(recipe | {"compile": True}, world, torch.device(device))["compile"] is True


def test_a_block_with_train_epoch_does_not_inherit_max_steps(tmp_path):
    text = "{Train_Setting: {max_steps: 5}, Train_Data: {A: {data_path: d, %s}, B: {base: A, %s}}}"
    for of_a, of_b, known in (("max_steps: 9", "train_epoch: 7", None), ("train_epoch: 7", "max_steps: 9", 9)):
        (tmp_path / "config.yaml").write_text(text % (of_a, of_b))
        recipe = load_recipe(tmp_path / "config.yaml", "B")
        assert (recipe["max_steps"], recipe["train_epoch"]) == (known, 7)


def test_the_length_is_max_steps_or_else_train_epoch():
    endless = {"max_minutes": None, "steps_per_minute": 2.0}
    assert total_steps({"max_steps": 7, "train_epoch": 3} | endless, steps_per_epoch=5) == 7
    assert total_steps({"max_steps": None, "train_epoch": 3} | endless, steps_per_epoch=5) == 15
    assert "15: 3.0 epochs of 5" in described(*digits("max_steps=null", "train_epoch=3"), images=44)
    assert "3 epochs" in described(*digits("max_steps=null", "train_epoch=3"), images=None)


@pytest.mark.parametrize("minutes, steps", [(1e-6, 1), (3, 6), (3.3, 7), (7.4, 15), (8, 15)])
def test_max_minutes_end_it_earlier(minutes, steps):
    times = [f"max_minutes={minutes}", "max_steps=null", "train_epoch=3"]
    assert "15: 3.0 epochs of 5; fewer if they do not fit into" in described(*digits(*times), images=44)
    recipe, *network = digits(*times, "steps_per_minute=2")
    assert total_steps(recipe, steps_per_epoch=5) == steps
    assert f"steps       {steps}: {steps / 5:.1f} epochs of 5" in described(recipe, *network, images=44)


@pytest.mark.parametrize("network", [{"channel_mult": (1, 2)}, {"network": "dit", "depth": 2}])
def test_the_counted_memory_is_what_a_real_step_keeps(network):
    model = build_model(image_size=16, model_channels=32, dropout=0.1, **network)
    diffusion, kept = GaussianDiffusion(100), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor is held, so that no address is reused
        return tensor

    x, t = torch.randn(4, 3, 16, 16), torch.arange(4)
    # kernels that keep no (N, N) weights of attention are not known on the meta device
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = diffusion.training_losses(model, x, t, torch.randn_like(x)).mean()
    real = sum(size for size, _ in kept.values())
    assert loss.requires_grad and activation_bytes(model, diffusion, (4, 3, 16, 16)) == pytest.approx(real, rel=0.05)
    assert next(model.parameters()).device.type == "cpu" and diffusion.betas.device.type == "cpu"


@pytest.mark.parametrize("settings, steps", [(["train_epoch=3"], 69), (["train_epoch=3", "max_steps=5"], 5)])
def test_epochs_by_hand_win_over_the_steps_of_a_block(settings, steps):
    assert total_steps(load_recipe(CONFIG, "Digits", settings), 23) == steps
