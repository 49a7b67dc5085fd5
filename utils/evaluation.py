"""How good are samples? Distances to real pictures, classes, nearest neighbours, brightness and fine detail.

All pictures are uint8 (N, C, S, S): samples pass through the same eight bits as real ones.
"""

import math
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from datasets import DataError, load_images
from utils.classifier import Extractor
from utils.held_out import OTHER_SPLIT

GROUPS = 10  # of the jackknife
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 500


class _AsGiven(nn.Module):
    """For torchmetrics: the features are computed once, here, and not at each of its calls."""

    def __init__(self, size: int):
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(first: Tensor, second: Tensor) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½) of the Gaussians that have the means and covariances of two sets of features,
    (N, D) and (M, D) (Heusel et al. 2017)."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # heavy, and no other mode has use for it

    metric = FrechetInceptionDistance(_AsGiven(first.shape[1])).set_dtype(torch.float64)
    metric.update(first.double(), real=False)
    metric.update(second.double(), real=True)
    return metric.compute().item()


def frechet_with_error(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """The distance, and the standard error that a jackknife over ten groups of the samples finds."""
    groups = torch.arange(len(samples)) % GROUPS
    parts = torch.tensor([frechet(samples[groups != group], real) for group in range(GROUPS)])
    return frechet(samples, real), ((GROUPS - 1) * parts.var(correction=0)).sqrt().item()


def kernel(first: Tensor, second: Tensor) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³ (Bińkowski et al. 2018): mean and
    standard deviation over 100 subsets, the same ones at each call."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KERNEL_SUBSET_SIZE, len(first), len(second))
    with warnings.catch_warnings(
        action="ignore", category=UserWarning
    ):  # that it keeps the features, which are here anyway
        metric = KernelInceptionDistance(_AsGiven(first.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size)
    metric.update(first, real=False)
    metric.update(second, real=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def distances(samples: Tensor, real: Tensor) -> dict:
    """Of features (N, D) to features (M, D)."""
    (fd, fd_error), (kd, kd_deviation) = frechet_with_error(samples, real), kernel(samples, real)
    return {"n": len(samples), "frechet": fd, "frechet_error": fd_error, "kernel": kd, "kernel_deviation": kd_deviation}


def class_shares(classes: Tensor, count: int = 10) -> dict:
    """The share of each class, and how even they are: their entropy over that of equal shares, 1 at most."""
    shares = torch.bincount(classes, minlength=count).double() / len(classes)
    return {"shares": shares.tolist(), "evenness": torch.special.entr(shares).sum().item() / math.log(count)}


def nearest(pictures: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """For each picture the RMS distance, of pixels in [0, 1], to the training picture nearest to it, and its number."""
    x, best = pictures.flatten(1).float() / 255, torch.full((len(pictures),), math.inf)
    number = torch.zeros(len(pictures), dtype=torch.int64)
    for start in range(0, len(training), 5000):
        apart, index = torch.cdist(x, training[start : start + 5000].flatten(1).float() / 255).min(1)
        number = torch.where(apart < best, index + start, number)
        best = torch.minimum(apart, best)
    return best / x.shape[1] ** 0.5, number


def look(pictures: Tensor) -> dict:
    """Mean brightness, 0 (black) to 1, and the share of the variance at wavelengths under four pixels."""
    x = pictures.double() / 255
    power = torch.fft.fft2(x - x.mean((2, 3), keepdim=True)).abs().square().mean((0, 1))  # (S, S)
    across = torch.fft.fftfreq(x.shape[-1], dtype=torch.float64).abs()
    fine = torch.maximum(across[:, None], across[None, :]) > 0.25
    return {"brightness": x.mean().item(), "fine_detail": (power[fine].sum() / power.sum().clamp(min=1e-12)).item()}


def real_pictures(dataset: str, data_path: str, split: str, size: int, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pictures of a split, and two sets of real ones that have no picture in common, to see how far real is from
    real: the other split and this one, or two halves where there is no other (a folder)."""
    reference = torch.from_numpy(np.array(load_images(dataset, data_path, split, size, channels)))
    try:
        other = load_images(dataset, data_path, OTHER_SPLIT[split], size, channels, download=False)
        return reference, torch.from_numpy(np.array(other)), reference
    except (KeyError, DataError):
        shuffled = reference[torch.randperm(len(reference), generator=torch.Generator().manual_seed(0))]
        return reference, *shuffled.tensor_split(2)


class Evaluation:
    """Compares samples with the pictures of real_pictures(): what concerns those alone is computed once. The floor and
    the real pictures' own neighbours are those of `count` of the others, as many as there are samples."""

    def __init__(
        self, reference: Tensor, others: Tensor, others_reference: Tensor, extractor: Extractor | None, count: int
    ):
        self.reference, self.extractor, others = reference, extractor, others[:count]
        self.real = {"n": len(reference), "look": look(reference)}
        self.others_apart, _ = nearest(others, others_reference)
        if extractor:
            self.features = extractor.features(reference)
            same = others_reference is reference
            floor_reference = self.features if same else extractor.features(others_reference)
            self.floor = distances(extractor.features(others), floor_reference)
            if extractor.classes:
                self.real["classes"] = class_shares(extractor.classes(self.features))

    def __call__(self, samples: Tensor) -> tuple[dict, Tensor, Tensor]:
        """All figures, plain, ready for JSON, and each sample's nearest neighbour in the reference: how far it is, and
        its number."""
        apart, number = nearest(samples, self.reference)
        report = {"n": len(samples), "look": look(samples), "reference": self.real}
        report["nearest"] = {
            "samples": apart.mean().item(),
            "real": self.others_apart.mean().item(),
            "closer_than_99_percent_of_real": (apart < self.others_apart.quantile(0.01)).double().mean().item(),
        }
        if self.extractor:
            features = self.extractor.features(samples)
            report |= distances(features, self.features) | {"floor": self.floor}
            report["extractor"] = {"name": self.extractor.name, "sha256": self.extractor.sha256}
            if self.extractor.classes:
                report["classes"] = class_shares(self.extractor.classes(features))
        return report, apart, number


def summary(report: dict) -> str:
    """The most of it, a line each, real pictures' own values in brackets."""
    real, floor = report["reference"], report.get("floor")
    lines = []
    if floor:
        for key, error in (("frechet", "frechet_error"), ("kernel", "kernel_deviation")):
            ours, theirs = (f"{part[key]:.5g} ± {part[error]:.2g} of {part['n']:,}" for part in (report, floor))
            lines.append(f"{key} distance {ours} ({theirs})")
    near, most = report["nearest"], report["nearest"]["closer_than_99_percent_of_real"]
    lines.append(f"nearest of {real['n']:,} real pictures: {near['samples']:.4f} away ({near['real']:.4f})")
    lines[-1] += f"; {most:.1%} of the samples are nearer than all but 1 % of real pictures are"
    for key in ("brightness", "fine_detail"):
        lines.append(f"{key.replace('_', ' ')} {report['look'][key]:.4f} ({real['look'][key]:.4f})")
    if "classes" in report:
        shares = " ".join(f"{share:.1%}" for share in report["classes"]["shares"])
        lines.append(
            f"evenness of classes {report['classes']['evenness']:.4f} ({real['classes']['evenness']:.4f}): {shares}"
        )
    return "\n".join(lines)
