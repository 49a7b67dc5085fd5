"""How good are samples? Distances to real pictures, classes, nearest neighbours, brightness and fine detail.

All pictures are uint8 (N, C, S, S): samples pass through the same eight bits as real ones.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from datasets import DataError, load_images
from utils.classifier import Extractor
from utils.held_out import OTHER_SPLIT

GROUPS = 10  # of the jackknife, and so the fewest pictures that can be compared
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps the features, which are here anyway
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
    """How many classes there are any of, the share of each, and how even they are: their entropy over that of equal
    shares, 1 at most."""
    shares = torch.bincount(classes, minlength=count).double() / len(classes)
    evenness = torch.special.entr(shares).sum().item() / math.log(count)
    return {"covered": int((shares > 0).sum()), "evenness": evenness, "shares": shares.tolist()}


def nearest(pictures: Tensor, training: Tensor, rank: int = 1) -> tuple[Tensor, Tensor]:
    """For each picture the RMS distance, of pixels in [0, 1], to the training picture nearest to it, and its number;
    with rank 2 the nearest but one: for training pictures themselves."""
    x, best = pictures.flatten(1).float() / 255, torch.full((len(pictures), rank), math.inf)
    number = torch.zeros(len(pictures), rank, dtype=torch.int64)
    for start in range(0, len(training), 5000):
        part = training[start : start + 5000].flatten(1).float() / 255
        best, which = torch.cat([best, torch.cdist(x, part)], 1).topk(rank, largest=False)
        here = torch.arange(start, start + len(part)).expand(len(x), -1)
        number = torch.cat([number, here], 1).gather(1, which)
    return best[:, -1] / x.shape[1] ** 0.5, number[:, -1]


def look(pictures: Tensor) -> dict:
    """Mean brightness, 0 (black) to 1, and the share of the variance whose wavelength, across or down, is under four
    pixels."""
    across = torch.fft.fftfreq(pictures.shape[-1], dtype=torch.float64).abs()
    fine = torch.maximum(across[:, None], across[None, :]) > 0.25
    brightness, power = 0.0, torch.zeros(fine.shape, dtype=torch.float64)
    for part in pictures.split(500):
        x = part.double() / 255
        brightness += x.mean((1, 2, 3)).sum().item() / len(pictures)
        power += torch.fft.fft2(x - x.mean((2, 3), keepdim=True)).abs().square().sum((0, 1))
    return {"brightness": brightness, "fine_detail": (power[fine].sum() / power.sum().clamp(min=1e-12)).item()}


@dataclass(frozen=True)
class RealPictures:
    """uint8 (N, C, S, S) each. The floor is how far `others` are from `reference`: real ones from real ones."""

    pictures: Tensor  # of the split that was asked for
    reference: Tensor  # that samples have their distances to: the split, or half of it
    others: Tensor  # in random order, none of them in `reference`
    others_are: str  # where they come from
    training: Tensor  # that samples have their nearest neighbours among
    own: Tensor  # whose nearest neighbours there are told beside the samples'; in random order
    own_rank: int  # 2 where they are training pictures: each is its own nearest


def real_pictures(
    dataset: str, data_path: str, split: str, trained_split: str, size: int, channels: int
) -> RealPictures:
    """The floor's others are the other split; where there is none (a folder, or all of a data set), samples and others
    are compared with one half, and the others are the other half."""

    def load(split: str, **options) -> Tensor:
        pictures = torch.from_numpy(np.array(load_images(dataset, data_path, split, size, channels, **options)))
        if len(pictures) < 2 * GROUPS:
            raise DataError(f"{data_path}: {len(pictures)} pictures are too few to compare with: {2 * GROUPS} at least")
        return pictures

    def shuffled(pictures: Tensor) -> Tensor:
        return pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))]

    training = load(trained_split)
    pictures = training if split == trained_split else load(split)
    try:
        held_out = load(OTHER_SPLIT[trained_split], download=False)
    except (KeyError, DataError):
        held_out = None
    own = (shuffled(training), 2) if held_out is None else (shuffled(held_out), 1)
    if held_out is None or split not in OTHER_SPLIT:
        reference, others = shuffled(pictures).tensor_split(2)
        return RealPictures(pictures, reference, others, "the other half", training, *own)
    others = shuffled(held_out if split == trained_split else training)
    return RealPictures(pictures, pictures, others, f"the {OTHER_SPLIT[split]} split", training, *own)


class Evaluation:
    """Compares `count` samples with real pictures: what concerns those alone is computed once."""

    def __init__(self, real: RealPictures, extractor: Extractor | None, count: int):
        self.extractor, self.training = extractor, real.training
        self.real = {"n": len(real.pictures), "look": look(real.pictures)}
        self.real_apart, _ = nearest(real.own[:count], real.training, real.own_rank)
        if extractor:
            self.features = extractor.features(real.reference)
            others = extractor.features(real.others[:count])
            self.floor = distances(others, self.features) | {"of": real.others_are, "to": len(real.reference)}
            if extractor.classes:
                self.real["classes"] = class_shares(extractor.classes(self.features))

    def __call__(self, samples: Tensor) -> tuple[dict, Tensor, Tensor]:
        """All figures, plain, ready for JSON, and each sample's nearest training picture: how far it is, and its
        number. Where there are fewer real pictures for the floor than samples, the report has the distances of as few
        samples too ("as_few"), because distances fall with their number."""
        apart, number = nearest(samples, self.training)
        report = {"n": len(samples), "look": look(samples), "reference": self.real, "extractor": None}
        report["nearest"] = {
            "n": len(self.training),
            "samples": apart.mean().item(),
            "real": self.real_apart.mean().item(),
            "closer_than_99_percent_of_real": (apart < self.real_apart.quantile(0.01)).double().mean().item(),
        }
        if self.extractor:
            report["extractor"] = {"name": self.extractor.name, "sha256": self.extractor.sha256}
            features, few = self.extractor.features(samples), self.floor["n"]
            report |= distances(features, self.features) | {"floor": self.floor}
            report["as_few"] = distances(features[:few], self.features) if few < len(samples) else None
            if self.extractor.classes:
                report["classes"] = class_shares(self.extractor.classes(features))
        return report, apart, number


def summary(report: dict) -> str:
    """The most of a report of test_solver.py, a line each, real pictures' own values in brackets."""
    real, near, used, floor = (report.get(key) for key in ("reference", "nearest", "extractor", "floor"))
    lines = ["{sample_info}, seed {seed}: {n:,} samples of {model} in {seconds} s".format(**report)]
    lines[0] += f", against {real['n']:,} pictures of {report['data']}'s {report['split']} split"
    if used:
        lines.append(f"features: {used['name']}, SHA-256 {used['sha256'][:8]}…; distances to {floor['to']:,} pictures")
        for key, error in (("frechet", "frechet_error"), ("kernel", "kernel_deviation")):
            parts = [part for part in (report, report["as_few"], floor) if part]
            told = [f"{part[key]:.5g} ± {part[error]:.2g} of {part['n']:,}" for part in parts]
            lines.append(f"{key} distance {', '.join(told[:-1])} (real: {told[-1]}, {floor['of']})")
    lines.append(f"nearest of {near['n']:,} training pictures: {near['samples']:.4f} away ({near['real']:.4f})")
    most = near["closer_than_99_percent_of_real"]
    lines[-1] += f"; {most:.1%} of the samples are nearer than all but 1 % of real pictures are"
    for key in ("brightness", "fine_detail"):
        lines.append(f"{key.replace('_', ' ')} {report['look'][key]:.4f} ({real['look'][key]:.4f})")
    if "classes" in report:
        classes, shares = report["classes"], " ".join(f"{share:.1%}" for share in report["classes"]["shares"])
        lines.append(f"{classes['covered']} classes, evenness {classes['evenness']:.4f} ")
        lines[-1] += f"({real['classes']['evenness']:.4f}): {shares}"
    return "\n".join(lines)
