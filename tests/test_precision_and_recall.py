"""Precision and recall of samples: the definition, and cases whose answer is known."""

import math

import torch

from evaluation.numbers import precision_and_recall
from evaluation.real_pictures import shuffled

CENTRES = 100 * torch.eye(4, dtype=torch.float64)


def points(count, *shape, seed, scale=1.0):
    return scale * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def around(centres, count, seed, scale=1.0):
    """`count` points around each of the centres, far apart."""
    return centres.repeat(count, 1) + points(count * len(centres), 4, seed=seed, scale=scale)


def test_they_are_those_of_the_definition(monkeypatch):
    """Point by point, without matrices; and the size of the chunks changes nothing."""
    samples, real = 0.5 + points(37, 2, seed=0, scale=1.5), points(37, 2, seed=1)

    def share_among(some, others):
        radii = [sorted(math.dist(a, b) for b in others)[3] for a in others]  # [0] is the point itself
        among = [any(math.dist(p, a) <= r for a, r in zip(others, radii, strict=True)) for p in some]
        return sum(among) / len(some)

    expected = share_among(samples.tolist(), real.tolist()), share_among(real.tolist(), samples.tolist())
    assert 0.2 < expected[0] < expected[1] < 1
    assert precision_and_recall(samples, real) == expected
    monkeypatch.setattr("evaluation.numbers.ROWS", 10)
    assert precision_and_recall(samples, real) == expected


def test_identical_sets_have_1_and_disjoint_ones_0():
    real = around(CENTRES, 50, seed=0)
    assert precision_and_recall(real, real) == (1, 1)
    assert precision_and_recall(real + 1000, real) == (0, 0)


def test_other_points_of_the_same_law_have_nearly_1():
    """Not 1: the sets around points of the sample cover not all of the law."""
    assert min(precision_and_recall(around(CENTRES, 200, seed=0), around(CENTRES, 200, seed=1))) > 0.9


def test_recall_falls_where_modes_are_dropped_and_precision_where_some_are_invented():
    real, half = around(CENTRES, 100, seed=0), around(CENTRES[:2], 200, seed=1)
    precision, recall = precision_and_recall(half, real)
    assert precision > 0.9 and 0.4 < recall <= 0.5
    precision, recall = precision_and_recall(real, half)
    assert 0.4 < precision <= 0.5 and recall > 0.9


def test_recall_falls_where_samples_are_too_much_alike():
    precision, recall = precision_and_recall(around(CENTRES, 100, seed=0, scale=0.1), around(CENTRES, 100, seed=1))
    assert precision > 0.8 and recall < 0.2


def test_as_many_points_are_used_on_each_side():
    """The first samples, and real points in an order that does not depend on the samples."""
    real, samples = around(CENTRES, 100, seed=0), around(CENTRES, 20, seed=1)
    few = precision_and_recall(samples, real)
    assert few == precision_and_recall(samples, shuffled(real)[:80].flip(0)) and 0.5 < min(few) < 1
    assert precision_and_recall(real, samples) == precision_and_recall(real[:80], samples)
