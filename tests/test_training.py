"""The parts of training: what a step sees, the averaged weights, the counted memory, what a checkpoint keeps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import GaussianDiffusion
from models import build_model
from utils.batches import ON_DEVICE, Batches, seed_of
from utils.checkpoint import build, find_checkpoint, load_checkpoint, save_checkpoint
from utils.config import load_recipe
from utils.device import autocast
from utils.ema import EMA
from utils.errors import CheckpointError, ConfigError
from utils.images import progress_frames
from utils.plan import activation_bytes, describe

CONFIG = Path(__file__).parent.parent / "config.yaml"
CPU = torch.device("cpu")


def numbered(n, **keywords):
    """Batches of n pictures, each of which is its number in all pixels but a first column of zeros."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    images[..., 0] = 0
    return Batches(images, **{"batch_size": 8, "horizontal_flip": False, "seed": 0, "device": CPU} | keywords)


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


def test_batches_are_the_pictures_in_range_and_flipped_only_when_asked():
    torch.manual_seed(0)
    plain, flipped = numbered(200, batch_size=200), numbered(200, batch_size=200, horizontal_flip=True)
    x, y = plain.batch(0), flipped.batch(0)
    numbers = ((x[:, 0, 0, 1] + 1) * 127.5).round().long()
    assert x.dtype == torch.float32 and x.shape == (200, 1, 4, 4) and numbers.tolist() == plain.indices(0).tolist()
    assert (x[..., 0] == -1).all()
    turned = (y[..., 0] != y[..., -1]).all((1, 2)) & (y[..., -1] == -1).all((1, 2))
    assert 60 < turned.sum() < 140  # half of 200, give or take six standard deviations of 7
    assert torch.equal(torch.where(turned[:, None, None, None], y.flip(-1), y), x)


def test_large_data_stay_where_they_are(monkeypatch):
    monkeypatch.setattr("utils.batches.ON_DEVICE", 10)
    assert ON_DEVICE > 10
    mapped = numbered(50)
    assert isinstance(mapped.images, np.ndarray)
    monkeypatch.undo()
    assert torch.equal(mapped.batch(4), numbered(50).batch(4))


def test_fewer_pictures_than_a_batch():
    recipe = load_recipe(CONFIG, "Digits", ["batch_size=8"])
    with pytest.raises(ConfigError, match="Digits: its 7 pictures are fewer than batch_size=8"):
        describe(recipe, *build(recipe), images=7)
    assert "2,000.0 epochs of 1" in describe(recipe, *build(recipe), images=8)
    assert numbered(8).steps_per_epoch == 1


def test_ema_is_the_average_its_docstring_writes():
    model = nn.Linear(3, 2).double()
    ema, expected = EMA(model, 0.9), [p.detach().clone() for p in model.parameters()]
    for step in range(100):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.parameters(), strict=True)]
    for ours, theirs in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)  # the same arithmetic in another order
        assert not ours.requires_grad


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


# --- checkpoints --------------------------------------------------------------------------------------------------


def content(step):
    recipe = load_recipe(CONFIG, "Digits")
    return {"recipe": recipe, "step": step, "model": {"w": torch.ones(5)}, "ema": {}, "optimizer": {}}


def test_the_newest_checkpoints_are_kept(tmp_path):
    file = tmp_path / "run" / "x.pt"
    for step in range(1, 6):
        save_checkpoint(file, content(step), keep=3)
    assert sorted(f.name for f in file.parent.iterdir()) == ["x.1.pt", "x.2.pt", "x.pt"]
    assert [load_checkpoint(file.with_name(n))["step"] for n in ("x.pt", "x.1.pt", "x.2.pt")] == [5, 4, 3]
    assert find_checkpoint(file, "auto")["step"] == 5


def test_a_bad_newest_is_named_and_the_one_before_is_taken(tmp_path, capsys):
    file = tmp_path / "x.pt"
    for step in (1, 2):
        save_checkpoint(file, content(step), keep=2)
    file.write_bytes(file.read_bytes()[:-50])
    assert find_checkpoint(file, "auto")["step"] == 1 and "x.pt is damaged" in capsys.readouterr().err
    save_checkpoint(file, content(3), keep=2)  # the damaged one was set aside, and does not push the good one out
    assert [load_checkpoint(file.with_name(n))["step"] for n in ("x.pt", "x.1.pt")] == [3, 1]
    assert (tmp_path / "x.pt.damaged").exists()
    file.write_bytes(file.read_bytes()[:-50])
    (tmp_path / "x.1.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        find_checkpoint(file, "auto")


def test_a_newer_format_is_never_replaced_by_an_older_file(tmp_path):
    file = tmp_path / "x.pt"
    save_checkpoint(file, content(1), keep=2)
    save_checkpoint(file, content(2) | {"format": 2}, keep=2)
    with pytest.raises(CheckpointError, match="format 2"):
        find_checkpoint(file, "auto")
    with pytest.raises(CheckpointError, match=r"x\.pt exists and would be written over"):
        find_checkpoint(file, str(tmp_path / "x.1.pt"))


def test_a_write_that_fails_leaves_the_older_ones(tmp_path):
    file = tmp_path / "x.pt"
    save_checkpoint(file, content(1), keep=2)
    with pytest.raises(TypeError):
        save_checkpoint(file, content(2) | {"extra": (i for i in ())}, keep=2)  # cannot be pickled
    assert [f.name for f in tmp_path.iterdir()] == ["x.pt"] and load_checkpoint(file)["step"] == 1
