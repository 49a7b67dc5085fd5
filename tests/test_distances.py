"""Fréchet and kernel distances against closed forms and another library, and their errors against real spreads."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.functional import gaussian_blur

from datasets import load_images
from evaluation.distances import Reference, frechet, kernel
from evaluation.features import extractor_for


def normal(count, size, seed, dtype=torch.float64):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gaussian(mean, covariance, count=400, seed=0):
    """Features whose mean and covariance are exactly these."""
    x = normal(count, len(mean), seed)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def distance(samples, real):
    return frechet(samples, Reference(real))[0]


def root(m):
    values, vectors = torch.linalg.eigh(m)
    return vectors @ values.sqrt().diag() @ vectors.T


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    """|m - m'|² + Σ (σ - σ')² for covariances with the same axes; in general with the root of a matrix."""
    mean, turn = torch.tensor([1.0, -2, 0.5]).double(), torch.linalg.qr(normal(3, 3, 3))[0]
    one, two = torch.tensor([1.0, 4, 9]).double(), torch.tensor([4.0, 1, 9]).double()
    first = gaussian(torch.zeros(3).double(), turn @ one.diag() @ turn.T)
    second = gaussian(mean, turn @ two.diag() @ turn.T, seed=1)
    assert distance(first, second) == pytest.approx(5.25 + 1 + 1, rel=1e-9)  # float64, with roots of rounding
    a, b = normal(3, 3, 2), normal(3, 3, 4)
    c, d = a @ a.T + torch.eye(3), b @ b.T + torch.eye(3)
    expected = (c + d - 2 * root(root(c) @ d @ root(c))).trace() + mean.square().sum()
    assert distance(gaussian(mean, c), gaussian(0 * mean, d, seed=1)) == pytest.approx(expected.item(), rel=1e-9)


def test_it_is_exact_for_fewer_pictures_than_features():
    """tr (C^½ C' C^½)^½ is the sum of the singular values of X Yᵀ, of centred sets over the root of their size."""
    x, y = normal(30, 50, 0), 0.1 + normal(40, 50, 1)
    c, d = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + c.square().sum() + d.square().sum()
    expected -= 2 * torch.linalg.svdvals(c @ d.T).sum()
    assert distance(x, y) == pytest.approx(expected.item(), rel=1e-10)


def test_both_distances_agree_with_another_library():
    fid, kid = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))

    class Given(torch.nn.Module):
        num_features = 20

        def forward(self, features):
            return features

    x, y = normal(150, 20, 0).exp(), normal(150, 20, 1).exp() + 0.1
    fid = fid.FrechetInceptionDistance(Given()).set_dtype(torch.float64)
    kid = kid.KernelInceptionDistance(Given(), subsets=2, subset_size=150).set_dtype(torch.float64)
    for metric in (fid, kid):
        metric.update(y, real=True)
        metric.update(x, real=False)
    assert distance(x, y) == pytest.approx(fid.compute().item(), rel=1e-7)  # theirs has the root of a general matrix
    assert kernel(x, Reference(y))[0] == pytest.approx(kid.compute()[0].item(), rel=1e-6)  # float32 somewhere in it


def test_the_jackknife_is_that_of_whole_distances():
    """The distances without a group are made of sums; here they are computed from the features that are left."""
    x, real = normal(60, 5, 0), Reference(normal(80, 5, 1))
    for measure in (frechet, kernel):
        left_out = [measure(torch.cat([x[:start], x[start + 6 :]]), real)[0] for start in range(0, 60, 6)]
        assert measure(x, real)[1] == pytest.approx(np.std(left_out) * 3, rel=1e-9)  # √9 times, for ten groups


def test_the_kernel_distance_is_the_unbiased_estimate(monkeypatch):
    """A double sum over all pairs, however they are cut into parts."""
    x, y = normal(70, 5, 0), 0.5 + normal(90, 5, 1)

    def k(a, b):
        return (a @ b.T / 5 + 1) ** 3

    within = [(k(z, z).sum() - k(z, z).trace()) / (len(z) * (len(z) - 1)) for z in (x, y)]
    expected = (sum(within) - 2 * k(x, y).mean()).item()
    assert kernel(x, Reference(y))[0] == pytest.approx(expected, rel=1e-10)
    parts = [slice(start, start + 20) for start in range(0, 90, 20)]
    monkeypatch.setattr("evaluation.distances.in_parts", lambda rows, **_: parts[: -(-len(rows) // 20)])
    assert kernel(x, Reference(y))[0] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shift, most", [(0.3, 1.3), (0, 1.41 * 1.3)])
def test_the_error_of_the_kernel_distance_is_right(shift, most):
    """Of equal laws it is up to √2 times too large: a jackknife counts pairs' variance twice (Efron, Stein 1981)."""
    real = Reference(normal(300, 8, 100))
    values, errors = torch.tensor([kernel(normal(300, 8, seed) + shift, real) for seed in range(60)]).T
    assert values.std() / 1.3 < errors.mean() < most * values.std()  # the deviation of 60 has an error of 9 %


def test_the_kernel_distance_of_equal_laws_is_0_on_average():
    values = torch.tensor([kernel(normal(100, 8, i), Reference(normal(100, 8, 1000 + i)))[0] for i in range(60)])
    assert abs(values.mean()) < 3 * values.std() / 60**0.5


@pytest.mark.parametrize("classes", [10, 100])  # of 100, each group has one sample of each
def test_the_error_of_a_distance_is_right_for_classes_drawn_in_turn(classes):
    """Classes with means that lie apart, as samples of a network with labels have them."""
    means = 5 * normal(classes, 4, 0)
    real, *drawn = means.repeat(1000 // classes, 1) + normal(21_000, 4, 1).view(21, 1000, 4)
    real = Reference(real)
    distances, errors = torch.tensor([frechet(samples, real) for samples in drawn]).T
    assert distances.std() / 3 < errors.mean() < 3 * distances.std()


@cache
def digits(split):
    return torch.from_numpy(np.array(load_images("Digits", "none", split, 8, 1)))


@pytest.mark.slow
def test_distances_are_0_for_identical_sets_and_grow_as_pictures_get_worse():
    real, labels = digits("train"), torch.from_numpy(load_digits().target[:1500])
    extractor = extractor_for("Digits", 1, torch.device("cpu"))
    features, generator = extractor.features(real), torch.Generator().manual_seed(0)
    reference, halves = Reference(features), features[torch.randperm(1500, generator=generator)].tensor_split(2)
    itself, (floor, error) = distance(features, features), frechet(halves[0], Reference(halves[1]))
    assert abs(itself) < 1e-6 < floor
    noise = torch.randn(real.shape, generator=generator)
    worse = {
        "blur": [gaussian_blur(real, 3, sigma) for sigma in (0.4, 0.7, 1.5)],
        "noise": [(real + level * noise).clamp(0, 255).byte() for level in (10, 30, 90)],
        "dropped classes": [real[labels < kept] for kept in (9, 6, 2)],
    }
    for name, steps in worse.items():
        for measure in (frechet, kernel):
            values = [measure(extractor.features(pictures), reference)[0] for pictures in steps]
            assert values[0] < values[1] < values[2], name
        assert frechet(extractor.features(steps[-1]), reference)[0] > 10 * floor, name
    others = [distance(*features[torch.randperm(1500, generator=generator)].tensor_split(2)) for _ in range(20)]
    spread = torch.tensor(others).std().item()  # here the reference varies too, not only the samples
    assert spread / 3 < error < 3 * spread
