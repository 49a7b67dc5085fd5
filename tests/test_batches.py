"""What a training step sees: pictures, flips, timesteps and noise."""

import numpy as np
import pytest
import torch

from diffusion import GaussianDiffusion
from training.batches import Batches, seed_of

CPU = torch.device("cpu")


def numbered(n, rank=0, world=1, labels=None, diffusion=None, **recipe):
    """Batches of n pictures, each of which has its number in all pixels except a first column of zeros."""
    images = np.arange(n, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    images[..., 0] = 0
    recipe = {"batch_size": 8, "horizontal_flip": False, "seed": 0, "num_workers": None} | recipe
    return Batches(images, recipe, diffusion or GaussianDiffusion(), CPU, rank, world, labels)


def batch(batches, step):
    """What training sees in one step."""
    (seen,) = batches.steps(step, step + 1)
    return seen


# --- which pictures ---


def test_an_epoch_is_a_permutation_cut_into_whole_batches():
    batches = numbered(50)
    assert batches.steps_per_epoch == 6 and numbered(8).steps_per_epoch == 1
    epochs = [np.concatenate([batches.indices(step) for step in range(6 * e, 6 * e + 6)]) for e in range(30)]
    for order in epochs:
        assert len(set(order)) == 48
    assert len({tuple(order) for order in epochs}) == 30
    assert set(np.concatenate(epochs)) == set(range(50))  # what one epoch leaves out is in another


def test_the_pictures_of_a_step_depend_only_on_seed_and_step():
    steps = [17, 3, 40, 5, 17]
    in_one_run = [numbered(50).indices(step) for step in steps]
    batches = numbered(50)
    assert all((batches.indices(step) == expected).all() for step, expected in zip(steps, in_one_run, strict=True))
    assert (numbered(50).indices(3) != numbered(50, seed=1).indices(3)).any()


def test_every_combination_of_numbers_is_another_seed():
    assert len({seed_of(a, b) for a in range(30) for b in range(30)}) == 900
    assert len({seed_of(1), seed_of(1, 0), seed_of(1, 0, 0), seed_of(2**32, 1), seed_of(0, 1, 1)}) == 5


def test_pictures_are_in_range_and_flipped_only_if_the_recipe_says_so():
    plain, flipped = numbered(200, batch_size=200), numbered(200, batch_size=200, horizontal_flip=True)
    x, y = batch(plain, 0).x_start, batch(flipped, 0).x_start
    numbers = ((x[:, 0, 0, 1] + 1) * 127.5).round().long()
    assert x.dtype == torch.float32 and x.shape == (200, 1, 4, 4) and numbers.tolist() == plain.indices(0).tolist()
    assert (x[..., 0] == -1).all()
    turned = (y[..., 0] != y[..., -1]).all((1, 2)) & (y[..., -1] == -1).all((1, 2))
    assert 60 < turned.sum() < 140  # half of 200, within six standard deviations of 7
    assert torch.equal(torch.where(turned[:, None, None, None], y.flip(-1), y), x)


@pytest.mark.parametrize("num_workers", [None, 0, 2])
def test_pictures_that_do_not_fit_into_memory_are_fetched_in_the_same_order(monkeypatch, num_workers):
    here = numbered(50)
    assert isinstance(here.images, torch.Tensor) and here.num_workers == 0
    monkeypatch.setattr("training.batches.IN_MEMORY", 0)
    there = numbered(50, num_workers=num_workers)
    assert isinstance(there.images, np.ndarray) and there.num_workers == (2 if num_workers is None else num_workers)
    pairs = list(zip(here.pixels(4, 20), there.pixels(4, 20), strict=True))  # from the middle of an epoch into a third
    assert len(pairs) == 16 and all(torch.equal(a, b) for a, b in pairs)


# --- timesteps and noise ---


def test_timesteps_and_noise_depend_only_on_seed_and_step():
    first, *_ = (batches := numbered(50)).steps(3, 6)
    alone = batch(batches, 3)
    assert torch.equal(first.t, alone.t) and torch.equal(first.noise, alone.noise)
    for other in (batch(batches, 4), batch(numbered(50, seed=1), 3)):
        assert not torch.equal(first.t, other.t) and not torch.equal(first.noise, other.noise)


def test_flips_timesteps_and_noise_are_drawn_in_this_order():
    """From one generator per step: otherwise a run of an earlier version would go on with other numbers."""
    for density in ("uniform", "logit_normal", "logit_normal_first"):
        diffusion = GaussianDiffusion(100, timestep_density=density)
        seen = batch(numbered(50, diffusion=diffusion, horizontal_flip=True), 3)
        generator = torch.Generator().manual_seed(seed_of(0, 3))
        torch.rand(8, generator=generator)
        t = diffusion.draw_timesteps(8, generator, progress=3 / 4)
        assert torch.equal(seen.t, t) and torch.equal(seen.noise, torch.randn(8, 1, 4, 4, generator=generator))


def test_the_length_of_a_training_decides_when_timesteps_become_uniform():
    densities = ("uniform", "logit_normal", "logit_normal_first")
    drawn = {}
    for density in densities:
        batches = numbered(50, batch_size=50, diffusion=GaussianDiffusion(100, timestep_density=density))
        drawn[density] = [batch.t for batch in batches.steps(0, 6)]
        assert torch.equal(drawn[density][5], next(batches.steps(5, 6)).t)  # as after a resume
    late = [*drawn["logit_normal"][:4], *drawn["uniform"][4:]]
    assert all(map(torch.equal, drawn["logit_normal_first"], late))
    assert not any(map(torch.equal, drawn["logit_normal"], drawn["uniform"]))


def test_timesteps_are_uniform_and_noise_is_standard_normal():
    seen = list(numbered(50, batch_size=50, diffusion=GaussianDiffusion(10)).steps(0, 40))
    counts = torch.bincount(torch.cat([batch.t for batch in seen]), minlength=10)
    # 2,000 timesteps, 200 of each: five standard errors of a share of 1/10 are 67
    assert len(counts) == 10 and (counts - 200).abs().max() < 67
    noise = torch.cat([batch.noise for batch in seen])
    # Five standard errors of 32,000 draws.
    assert noise.dtype == torch.float32 and abs(noise.mean()) < 5 / 32_000**0.5
    assert abs(noise.var() - 1) < 5 * (2 / 32_000) ** 0.5


# --- shares of a batch ---


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_pictures_timesteps_and_noise_of_one_batch(world):
    whole = batch(numbered(50, horizontal_flip=True), 3)
    parts = [batch(numbered(50, rank, world, horizontal_flip=True), 3) for rank in range(world)]
    for name in ("x_start", "t", "noise"):
        shares = [getattr(part, name) for part in parts]
        assert all(len(share) == 8 // world for share in shares)
        assert torch.equal(torch.cat(shares), getattr(whole, name))


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_the_parts_of_a_batch_are_equal_and_make_up_the_whole(parts):
    whole = batch(numbered(50), 3)
    x_start, t, noise, labels = zip(*whole.split(parts), strict=True)
    assert labels == (None,) * parts
    for split, together in ((x_start, whole.x_start), (t, whole.t), (noise, whole.noise)):
        assert [len(part) for part in split] == [8 // parts] * parts
        assert torch.equal(torch.cat(split), together)


def test_dropout_differs_between_processes_and_repeats_in_a_resumed_run():
    """Dropout draws from torch's global generator, which each batch seeds."""

    def draws(rank, start):
        return {seen.step: torch.rand(4).tolist() for seen in numbered(50, rank, 2).steps(start, 6)}

    first, second, resumed = draws(0, 2), draws(1, 2), draws(0, 4)
    assert not any(first[step] == second[step] for step in first)
    assert len({tuple(values) for values in first.values()}) == 4
    assert resumed == {step: first[step] for step in (4, 5)}


# --- labels ---


def labelled(n=50, rank=0, world=1, label_dropout=0.3, **recipe):
    """Picture i has the label i + 100, which no picture has as its number; 1000: no label."""
    return numbered(n, rank, world, np.arange(n) + 100, num_classes=1000, label_dropout=label_dropout, **recipe)


def test_labels_are_those_of_the_pictures():
    for step, seen in enumerate(labelled(label_dropout=0.0).steps(0, 13)):
        numbers = ((seen.x_start[:, 0, 0, 1] + 1) * 127.5).round().long()
        assert seen.labels.dtype == torch.int64 and torch.equal(seen.labels, numbers + 100), step


@pytest.mark.parametrize("label_dropout", [0.1, 0.5])
def test_labels_are_dropped_at_their_rate(label_dropout):
    batches = labelled(label_dropout=label_dropout, batch_size=50)
    dropped = torch.stack([seen.labels == 1000 for seen in batches.steps(0, 400)]).double()
    # five standard errors of 20,000 draws, and of the 400 draws of each place in the batch
    deviation = (label_dropout * (1 - label_dropout)) ** 0.5
    assert abs(dropped.mean() - label_dropout) < 5 * deviation / 20_000**0.5
    assert (dropped.mean(0) - label_dropout).abs().max() < 5 * deviation / 400**0.5


def test_labels_change_nothing_else_of_a_step():
    """Not even what dropout draws from torch's global generator."""

    def draws(batches):
        return [(seen.x_start, seen.t, seen.noise, torch.rand(3)) for seen in batches.steps(5, 9)]

    pairs = zip(draws(numbered(50, horizontal_flip=True)), draws(labelled(50, horizontal_flip=True)), strict=True)
    assert all(torch.equal(a, b) for plain, with_labels in pairs for a, b in zip(plain, with_labels, strict=True))


def test_dropped_labels_depend_only_on_seed_and_step_and_are_shared_by_processes():
    whole, *_, later = labelled().steps(3, 8)
    assert torch.equal(batch(labelled(), 7).labels, later.labels)
    assert not torch.equal(batch(labelled(seed=1), 3).labels == 1000, whole.labels == 1000)
    assert torch.equal(torch.cat([batch(labelled(50, rank, 4), 3).labels for rank in range(4)]), whole.labels)
    parts = [labels for *_, labels in whole.split(2)]
    assert torch.equal(torch.cat(parts), whole.labels) and len(parts[0]) == 4
