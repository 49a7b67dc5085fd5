"""The parts of training: what a step sees, the averaged weights, the optimizer's step, the counted memory."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import GaussianDiffusion
from models import build_model
from training.batches import Batches, seed_of
from training.ema import EMA
from training.optimizer import backward, learning_rate, make_optimizer, update
from training.plan import activation_bytes, describe
from training.processes import Processes
from training.resume import TrainingState
from utils.checkpoint import build
from utils.config import load_recipe
from utils.device import autocast
from utils.errors import ConfigError
from utils.pictures import progress_frames

CONFIG = Path(__file__).parent.parent / "config.yaml"
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def numbered(n, rank=0, world=1, **recipe):
    """Batches of n pictures, each of which is its number in all pixels but a first column of zeros."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    images[..., 0] = 0
    recipe = {"batch_size": 8, "horizontal_flip": False, "seed": 0, "num_workers": None, "timestep_num": 1000} | recipe
    return Batches(images, recipe, CPU, rank, world)


def batch(batches, step):
    """What training sees in one step."""
    (seen,) = batches.steps(step, step + 1)
    return seen.x_start


def test_an_epoch_is_a_permutation_cut_into_whole_batches():
    batches = numbered(50)
    assert batches.steps_per_epoch == 6
    epochs = [np.concatenate([batches.indices(step) for step in range(6 * e, 6 * e + 6)]) for e in range(30)]
    for order in epochs:
        assert len(set(order)) == 48
    assert len({tuple(order) for order in epochs}) == 30
    assert set(np.concatenate(epochs)) == set(range(50))  # what one epoch leaves out comes in another


def test_a_step_depends_on_seed_and_number_alone():
    steps = [17, 3, 40, 5, 17]
    assert all(
        (numbered(50).indices(s) == b).all() for s, b in zip(steps, map(numbered(50).indices, steps), strict=True)
    )
    assert (numbered(50).indices(3) != numbered(50, seed=1).indices(3)).any()
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900
    assert len({seed_of(1), seed_of(1, 0), seed_of(1, 0, 0), seed_of(2**32, 1), seed_of(0, 1, 1)}) == 5


def test_batches_are_the_pictures_in_range_and_flipped_only_when_asked():
    plain, flipped = numbered(200, batch_size=200), numbered(200, batch_size=200, horizontal_flip=True)
    x, y = batch(plain, 0), batch(flipped, 0)
    numbers = ((x[:, 0, 0, 1] + 1) * 127.5).round().long()
    assert x.dtype == torch.float32 and x.shape == (200, 1, 4, 4) and numbers.tolist() == plain.indices(0).tolist()
    assert (x[..., 0] == -1).all()
    turned = (y[..., 0] != y[..., -1]).all((1, 2)) & (y[..., -1] == -1).all((1, 2))
    assert 60 < turned.sum() < 140  # half of 200, give or take six standard deviations of 7
    assert torch.equal(torch.where(turned[:, None, None, None], y.flip(-1), y), x)


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_pictures_that_do_not_fit_are_fetched_alike(monkeypatch, num_workers):
    here = numbered(50)
    assert isinstance(here.images, torch.Tensor) and here.num_workers == 0
    monkeypatch.setattr("training.batches.fits", lambda images, device: False)
    there = numbered(50, num_workers=num_workers)
    assert isinstance(there.images, np.ndarray) and there.num_workers == (2 if num_workers is None else num_workers)
    pairs = list(zip(here.pixels(4, 20), there.pixels(4, 20), strict=True))  # from the middle of an epoch into a third
    assert len(pairs) == 16 and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_a_batch(world):
    whole = batch(numbered(50, horizontal_flip=True), 3)
    parts = [batch(numbered(50, rank, world, horizontal_flip=True), 3) for rank in range(world)]
    assert all(len(part) == 8 // world for part in parts) and torch.equal(torch.cat(parts), whole)


def test_fewer_pictures_than_a_batch():
    recipe = load_recipe(CONFIG, "Digits", ["batch_size=8"])
    with pytest.raises(ConfigError, match="Digits: its 7 pictures are fewer than batch_size=8"):
        describe(recipe, *build(recipe), images=7)
    assert "2,000.0 epochs of 1" in describe(recipe, *build(recipe), images=8)
    assert numbered(8).steps_per_epoch == 1


def test_a_batch_is_shared_out_evenly():
    recipe = load_recipe(CONFIG, "Digits", ["batch_size=8", "gradient_accumulation=2"])
    assert "(8, 1, 8, 8), 2 at a time in 2 process(es)" in describe(recipe, *build(recipe), images=8, world=2)
    with pytest.raises(ConfigError, match="batch_size=8 is not a multiple of 6, 3 process"):
        describe(recipe, *build(recipe), images=8, world=3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
def test_ema_is_the_average_its_docstring_writes(device):
    model = nn.Linear(3, 2).double().to(device)
    ema, expected = EMA(model, 0.9), [p.detach().clone() for p in model.parameters()]
    for step in range(100):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        taken = step % 7 != 3
        ema.update(step, torch.tensor(taken, device=device))
        decay = min(0.9, (1 + step) / (10 + step)) if taken else 1
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.parameters(), strict=True)]
    for ours, theirs in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)  # the same arithmetic in another order
        assert not ours.requires_grad


# --- the optimizer's step -------------------------------------------------------------------------------------------


def settings(**recipe):
    return {
        "learning_rate": 0.01,
        "Adam_beta1": 0.9,
        "Adam_beta2": 0.99,
        "warmup_steps": 0,
        "lr_schedule": "constant",
    } | recipe


def test_the_learning_rate_is_torchs_own_schedulers():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 20, 1, total_iters=19)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[20])
    for step in range(100):
        ours = learning_rate(settings(warmup_steps=20, lr_schedule="cosine"), step, 100)
        assert ours == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)  # theirs multiplies up step by step
        assert learning_rate(settings(), step, 100) == 0.01
        optimizer.step()
        scheduler.step()
    assert learning_rate(settings(warmup_steps=200), 49, 50) == 0.01  # a warm-up ends with the training at the latest


def problem():
    torch.manual_seed(0)
    return nn.Linear(5, 3), torch.randn(4, 5)


@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_a_step_is_torchs_adam(grad_clip):
    (ours, x), (theirs, _) = problem(), problem()
    optimizer, reference = make_optimizer(ours, settings()), torch.optim.Adam(theirs.parameters(), 0.5, (0.9, 0.99))
    for step in range(5):
        optimizer.zero_grad()
        backward(ours(x).square().mean())
        norm, taken = update(optimizer, 0.01 / (1 + step), grad_clip)
        reference.zero_grad()
        theirs(x).square().mean().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), grad_clip or 1e9)
        reference.param_groups[0]["lr"] = 0.01 / (1 + step)
        reference.step()
        assert taken
        torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # the fused kernel rounds in another order


@pytest.mark.parametrize("wrong", ["loss inf", "loss nan", "gradient"])
@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_a_step_that_goes_wrong_changes_nothing(wrong, grad_clip):
    model, x = problem()
    optimizer, ema = make_optimizer(model, settings()), EMA(model, 0.9)

    def states():
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"], ema.model.state_dict()))

    for step in range(3):
        before = states()
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if step == 1:
            loss = {"loss inf": loss + torch.inf, "loss nan": loss * torch.nan, "gradient": loss}[wrong]
        backward(loss)
        if step == 1 and wrong == "gradient":
            model.bias.grad[1] = torch.inf
        norm, taken = update(optimizer, 0.01, grad_clip)
        ema.update(step, taken)
        assert bool(taken) == (step != 1) == bool(norm.isfinite())
        if step == 1:
            torch.testing.assert_close(states(), before, rtol=0, atol=0)
        else:
            assert not torch.equal(states()[0]["bias"], before[0]["bias"])
            assert not torch.equal(states()[2]["bias"], before[2]["bias"])


def test_a_checkpoint_of_another_memory_layout_goes_on_alike():
    def trained(layout):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 8, 3).to(memory_format=layout)
        return model, make_optimizer(model, settings())

    def step(model, optimizer):
        optimizer.zero_grad()
        backward(model(torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)).square().mean())
        update(optimizer, 0.01, None)

    (here, optimizer), (there, other) = trained(torch.channels_last), trained(torch.contiguous_format)
    for _ in range(5):
        step(here, optimizer)
    content = {"step": 5, "model": here.state_dict(), "ema": here.state_dict(), "optimizer": optimizer.state_dict()}
    state = TrainingState(Path("x.pt"), {}, there, nn.Conv2d(3, 8, 3), other, Processes(CPU), images=1)
    assert state.restore(copy.deepcopy(content)) == 5
    step(here, optimizer)
    step(there, other)
    assert other.state[there.weight]["exp_avg"].is_contiguous()
    torch.testing.assert_close(there.state_dict(), here.state_dict())  # convolutions sum in another order


# --- what it takes and what it shows ----------------------------------------------------------------------------------


def test_the_counted_memory_is_what_a_real_step_keeps():
    model = build_model(image_size=16, model_channels=32, channel_mult=(1, 2), dropout=0.1)
    diffusion, kept = GaussianDiffusion(100), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor is held, so that no address comes twice
        return tensor

    x, t = torch.randn(4, 3, 16, 16), torch.arange(4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = diffusion.training_losses(model, x, t, torch.randn_like(x)).mean()
    real = sum(size for size, _ in kept.values())
    # attention is another kernel on a real device and keeps other small tensors
    assert loss.requires_grad and activation_bytes(model, diffusion, (4, 3, 16, 16)) == pytest.approx(real, rel=0.05)
    assert next(model.parameters()).device.type == "cpu" and diffusion.betas.device.type == "cpu"


def test_progress_goes_from_noise_to_the_result_coarse_to_fine():
    frames = progress_frames(1000, 10)
    assert frames[0] == 0 and frames[-1] == 1000 and len(frames) == 10
    assert (np.diff(np.diff(frames)) <= 1).all()  # ever finer, up to rounding
    assert frames[1] == round((1 / 9) ** 0.3 * 1000)
    assert progress_frames(1, 10) == [0, 1] and progress_frames(50, 1) == [0, 50]


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision(precision, dtype):
    with autocast(precision, CPU):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
