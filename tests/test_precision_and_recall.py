"""Precision, recall, density and coverage: the definitions, and cases whose answer is known."""

import math

import torch

from evaluation.distances import neighbourhoods
from evaluation.parts import shuffled

CENTRES = 100 * torch.eye(4, dtype=torch.float64)


def points(count, *shape, seed, scale=1.0):
    return scale * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def precision_and_recall(samples, real):
    found = neighbourhoods(samples, real)
    return found["sample_precision"], found["sample_recall"]


def density_and_coverage(samples, real):
    found = neighbourhoods(samples, real)
    return found["sample_density"], found["sample_coverage"]


def around(centres, count, seed, scale=1.0):
    """`count` points around each of the centres, far apart."""
    return centres.repeat(count, 1) + points(count * len(centres), 4, seed=seed, scale=scale)


def test_they_are_those_of_the_definition(monkeypatch):
    """Point by point, without matrices; and the size of the chunks changes nothing."""
    samples, real = 0.5 + points(37, 2, seed=0, scale=1.5), points(37, 2, seed=1)

    def balls(points, others, k):
        """Which of the points are in the ball of each of the others."""
        radii = [sorted(math.dist(a, b) for b in others)[k] for a in others]  # [0] is the point itself
        return [[math.dist(p, a) <= r for p in points] for a, r in zip(others, radii, strict=True)]

    in_real, in_samples = balls(samples.tolist(), real.tolist(), 3), balls(real.tolist(), samples.tolist(), 3)
    expected = [sum(map(any, zip(*inside, strict=True))) / 37 for inside in (in_real, in_samples)]
    in_wider = balls(samples.tolist(), real.tolist(), 5)
    expected += [sum(map(sum, in_wider)) / 37 / 5, sum(map(any, in_wider)) / 37]
    assert 0.2 < expected[0] < expected[1] < 1 and 0.2 < expected[2] < expected[3] <= 1
    assert list(neighbourhoods(samples, real).values()) == expected
    monkeypatch.setattr("evaluation.distances.ROWS", 10)
    assert list(neighbourhoods(samples, real).values()) == expected


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
    assert few == precision_and_recall(samples, real[shuffled(400)[:80]].flip(0)) and 0.5 < min(few) < 1
    assert precision_and_recall(real, samples) == precision_and_recall(real[:80], samples)


def test_density_and_coverage_of_one_law_are_those_that_the_paper_derives():
    """Density 1, coverage 1 - (N-1)…(N-k) / (2N-1)…(2N-k): Naeem et al. 2020, appendix. One law for every dimension."""
    found = [density_and_coverage(points(100, 3, seed=2 * i), points(100, 3, seed=2 * i + 1)) for i in range(40)]
    density, coverage = torch.tensor(found).T
    expected = 1 - math.prod((100 - i) / (200 - i) for i in range(1, 6))
    for values, value in ((density, 1), (coverage, expected)):
        assert abs(values.mean() - value) < 3 * values.std() / 40**0.5


def test_an_outlier_of_the_real_set_makes_samples_precise_but_not_dense():
    real, samples = points(200, 4, seed=0), 5 + points(200, 4, seed=1)  # ten radii of a sample away
    outlier = real.clone()
    outlier[0] = 10
    assert neighbourhoods(samples, real)["sample_precision"] < 0.05
    found = neighbourhoods(samples, outlier)
    assert found["sample_precision"] > 0.9  # its ball reaches to the real pictures
    assert found["sample_density"] <= 1 / 5 + 0.02 and found["sample_coverage"] < 0.05  # one ball of 200, of five
