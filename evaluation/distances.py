"""How far are samples from real pictures? Numbers of two sets of features, (N, D) and (M, D)."""

from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from evaluation.parts import in_parts, shuffled

GROUPS = 10  # of the jackknife, and so the smallest number of pictures that can be compared
PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS = 3, 5  # as in the papers
ROWS = 500  # of the matrix of distances for precision and recall that are in memory at once


class Reference:
    """The features of real pictures, (M, D), and what depends only on them, computed once."""

    def __init__(self, features: Tensor):
        self.features, self.count = features, len(features)

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """(m, tr C, C^½): the mean (D,), the trace of the covariance and its root (D, D), in float64."""
        mean, size = self.features.mean(0, dtype=torch.float64), self.features.shape[1]
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for part in in_parts(self.features):
            x = self.features[part] - mean
            covariance += x.T @ x / (self.count - 1)
        return _with_root(mean, covariance, self.count)

    @cached_property
    def likeness(self) -> float:
        """The mean kernel of two different pictures, see `kernel`."""
        parts, total = [self.features[part] for part in in_parts(self.features)], 0.0
        for i, part in enumerate(tqdm(parts, desc="kernel distance", leave=False, delay=2)):
            total += _kernel_sum(part, part, distinct=True) + 2 * sum(_kernel_sum(part, other) for other in parts[:i])
        return total / (len(self.features) * (len(self.features) - 1))


class Statistics:
    """The mean (D,) and the covariance (D, D) of real pictures, as others publish them: a reference for `frechet`."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.moments, self.count = _with_root(mean.double(), covariance.double(), 1 << 62), 1 << 62


def _with_root(mean: Tensor, covariance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    eigenvalues[: max(0, len(mean) - count + 1)] = 0  # M points span M - 1 directions: the rest is rounding
    return mean, covariance.trace(), vectors * eigenvalues.clamp(min=0).sqrt() @ vectors.T


def jackknife(left_out: list[float]) -> float:
    """The standard error of an estimate, from its values without each of GROUPS groups of the samples.

    Only the samples are random in it: the real pictures that they are compared with stay the same. A group is of
    samples that follow each other, because each such run has all classes, in their proportions.
    """
    return ((len(left_out) - 1) * torch.tensor(left_out, dtype=torch.float64).var(correction=0)).sqrt().item()


def frechet(samples: Tensor, real: Reference | Statistics) -> tuple[float, float]:
    """The Fréchet distance of Gaussians with the means and covariances of both sets, and its standard error.

        |m - m'|² + tr(C + C' - 2 (C^½ C' C^½)^½)      Heusel et al. 2017, where the features are Inception's

    C^½ C' C^½ is the covariance of the samples times C^½. Sums over ten groups give it for all, and without each group.
    """
    mean, trace, root = real.moments

    def sums(group: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        x = group - mean
        y = x @ root
        return len(x), x.sum(0), x.square().sum(), y.T @ y

    def distance(count: int, total: Tensor, squares: Tensor, products: Tensor) -> float:
        shift = total / count
        covariance = (products - count * (shift @ root).outer(shift @ root)) / (count - 1)
        rank = min(count, real.count) - 1
        eigenvalues = torch.linalg.eigvalsh(covariance)[-rank:].clamp(min=0)
        spread = trace + (squares - count * shift.square().sum()) / (count - 1)
        return (shift.square().sum() + spread - 2 * eigenvalues.sqrt().sum()).item()

    groups = [sums(group) for group in samples.tensor_split(GROUPS)]
    everything = [sum(of_groups) for of_groups in zip(*groups, strict=True)]
    bar = tqdm(groups, desc="Fréchet distance", leave=False, delay=2)
    left_out = [distance(*(whole - part for whole, part in zip(everything, group, strict=True))) for group in bar]
    return distance(*everything), jackknife(left_out)


def _kernel_sum(first: Tensor, second: Tensor, distinct: bool = False) -> float:
    """The sum of (x·y / D + 1)³ over all pairs; distinct: without those of a picture with itself."""
    total, one, size = 0.0, torch.ones(1, dtype=torch.float64), first.shape[1]
    for rows in in_parts(first, most=256):  # what fits into a cache is several times as fast
        x = first[rows].double()
        for part in in_parts(second):
            k = torch.addmm(one, x, second[part].double().T, alpha=1 / size).flatten()
            total += k.square().dot(k).item()
        total -= (x.square().sum(1) / size + 1).pow(3).sum().item() if distinct else 0
    return total


def kernel(samples: Tensor, real: Reference) -> tuple[float, float]:
    """The kernel distance and its standard error, with k(x, y) = (x·y / D + 1)³ and all pairs of pictures.

        mean k(x, x') + mean k(y, y') - 2 mean k(x, y)      Bińkowski et al. 2018; x' is never x itself

    This estimate of the squared maximum mean discrepancy is unbiased: that of equal laws is 0 on average, and may be
    negative. There its error is up to √2 times too large.
    """
    groups = samples.tensor_split(GROUPS)
    sizes = torch.tensor([len(group) for group in groups])
    within = torch.tensor([[_kernel_sum(a, b, distinct=a is b) for b in groups] for a in groups], dtype=torch.float64)
    bar = tqdm(groups, desc="kernel distance", leave=False, delay=2)
    across = torch.tensor([_kernel_sum(group, real.features) for group in bar], dtype=torch.float64)

    def distance(kept: Tensor) -> float:
        count, likeness = sizes[kept].sum(), across[kept].sum() / len(real.features)
        return (within[kept][:, kept].sum() / (count * (count - 1)) + real.likeness - 2 * likeness / count).item()

    numbers = torch.arange(GROUPS)
    return distance(numbers), jackknife([distance(numbers[numbers != group]) for group in numbers])


def neighbourhoods(samples: Tensor, real: Tensor) -> dict:
    """Precision, recall, density and coverage; of both sets the same number of pictures is used.

    Around each point of a set lies a ball that reaches to its own k-th neighbour in the set. Kynkäänniemi et al. 2019,
    eq. 1 and 2, k = 3: precision is the share of samples in some ball of a real picture, recall the share of real
    pictures in some ball of a sample. Naeem et al. 2020, k = 5: density is the number of balls of real
    pictures that a sample is in, over k; coverage the share of those balls that have a sample in them. An outlier's
    ball is large, and makes what is in it precise, but adds little to the density.
    """
    count = min(len(samples), len(real))
    samples, real = samples[:count].double(), real[shuffled(len(real))[:count]].double()
    radius, wider = _radii(real)
    precise = dense = 0
    recalled, covered = torch.zeros(2, count, dtype=torch.bool)
    for part, reach in zip(samples.split(ROWS), _radii(samples)[0].split(ROWS), strict=True):
        apart = torch.cdist(part, real)
        precise += (apart <= radius).any(1).sum().item()
        dense += (apart <= wider).sum().item()
        recalled |= (apart <= reach[:, None]).any(0)
        covered |= (apart <= wider).any(0)
    recall, coverage = recalled.double().mean().item(), covered.double().mean().item()
    found = {"sample_precision": precise / count, "sample_recall": recall}
    return found | {"sample_density": dense / (COVERAGE_NEIGHBOURS * count), "sample_coverage": coverage}


def _radii(features: Tensor) -> Tensor:
    """The distance of each of (N, D) to its third and to its fifth neighbour among the others: (2, N)."""
    which = [min(k, len(features) - 1) for k in (PRECISION_NEIGHBOURS, COVERAGE_NEIGHBOURS)]  # 0 is the point itself
    nearest = [torch.cdist(x, features).topk(max(which) + 1, largest=False).values for x in features.split(ROWS)]
    return torch.cat(nearest)[:, which].T


def distances(samples: Tensor, real: Reference, least: int = 0) -> dict:
    """All of these numbers; of fewer samples or real pictures than `least` without a Fréchet distance."""
    found = {"n": len(samples)} | dict(zip(("kernel", "kernel_error"), kernel(samples, real), strict=True))
    if min(len(samples), real.count) >= least:
        found |= dict(zip(("frechet", "frechet_error"), frechet(samples, real), strict=True))
    return found | neighbourhoods(samples, real.features)
