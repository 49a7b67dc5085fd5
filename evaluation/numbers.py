"""How good are samples? Distances to real pictures, classes, nearest neighbours, brightness and fine detail.

All pictures are uint8 (N, C, H, W): samples are rounded to the same eight bits as real pictures. To add a number,
compute it in `Evaluation.__call__` and print it in `summary`.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from evaluation.features import Extractor
from evaluation.neighbours import closeness, nearest_of_views
from evaluation.real_pictures import RealPictures, shuffled

GROUPS = 10  # of the jackknife, and so the smallest number of pictures that can be compared
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 500
NEIGHBOURS, ROWS = 3, 500  # of precision and recall, and how many pictures' distances are in memory at once

# --- numbers of pictures or their features ----------------------------------------------------------------------------


class _Identity(nn.Module):
    """Gives torchmetrics features that are computed already, where it expects an extractor."""

    def __init__(self, size: int):
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(first: Tensor, second: Tensor) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½), with the means and covariances of two sets of features, (N, D) and (M, D).

    Heusel et al. 2017, where the features are Inception's.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # imported here because only this mode needs it

    metric = FrechetInceptionDistance(_Identity(first.shape[1])).set_dtype(torch.float64)
    metric.update(first.double(), real=False)
    metric.update(second.double(), real=True)
    return metric.compute().item()


def frechet_with_error(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """The distance, and its standard error by a jackknife over ten groups of samples that follow each other.

    Classes are drawn in turn, so that each group has them all. Unless the samples in a group are a multiple of the
    classes, the groups differ in classes, and the error is too large: two or three times, with fewer samples than
    classes and classes that lie apart.
    """
    groups = torch.arange(len(samples)) * GROUPS // len(samples)  # every tenth may be of one class
    parts = torch.tensor([frechet(samples[groups != group], real) for group in range(GROUPS)])
    return frechet(samples, real), ((GROUPS - 1) * parts.var(correction=0)).sqrt().item()


def kernel(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Kernel distance: the unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³.

    Bińkowski et al. 2018. Mean and standard deviation over 100 random subsets, the same ones in every call.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(KERNEL_SUBSET_SIZE, len(first), len(second))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the memory for features, which exist anyway
        metric = KernelInceptionDistance(_Identity(first.shape[1]), subsets=KERNEL_SUBSETS, subset_size=size)
    metric.update(first, real=False)
    metric.update(second, real=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, deviation = metric.compute()
    return mean.item(), deviation.item()


def precision_and_recall(samples: Tensor, real: Tensor) -> tuple[float, float]:
    """The share of the samples that are among the real pictures, and of the real ones that are among the samples.

    Kynkäänniemi et al. 2019, eq. 1 and 2, for features (N, D) and (M, D); of both the same number is used. A point is
    among a set if its distance to some point of the set is at most that point's distance to its own third neighbour.
    """
    count = min(len(samples), len(real))
    samples, real = samples[:count], shuffled(real)[:count]
    among_real, among_samples = [], torch.zeros(count, dtype=torch.bool)
    radius_of_real, radius_of_samples = (_radii(features) for features in (real, samples))
    for part, radii in zip(samples.split(ROWS), radius_of_samples.split(ROWS), strict=True):
        apart = torch.cdist(part, real)
        among_real.append((apart <= radius_of_real).any(1))
        among_samples |= (apart <= radii[:, None]).any(0)
    return torch.cat(among_real).double().mean().item(), among_samples.double().mean().item()


def _radii(features: Tensor) -> Tensor:
    """The distance of each of (N, D) to its NEIGHBOURS-th neighbour among the others: (N,)."""
    which = min(NEIGHBOURS + 1, len(features))  # the nearest is the point itself
    return torch.cat([torch.cdist(part, features).kthvalue(which, 1).values for part in features.split(ROWS)])


def distances(samples: Tensor, real: Tensor) -> dict:
    """Both distances between features (N, D) and (M, D), and precision and recall."""
    (fd, fd_error), (kd, kd_deviation) = frechet_with_error(samples, real), kernel(samples, real)
    found = {"n": len(samples), "frechet": fd, "frechet_error": fd_error}
    found |= {"kernel": kd, "kernel_deviation": kd_deviation}
    return found | dict(zip(("sample_precision", "sample_recall"), precision_and_recall(samples, real), strict=True))


def class_shares(classes: Tensor, count: int = 10) -> dict:
    """The number of classes that occur, the share of each, and their evenness: entropy over its maximum, 1 at most."""
    shares = torch.bincount(classes, minlength=count).double() / len(classes)
    evenness = torch.special.entr(shares).sum().item() / math.log(count)
    return {"covered": int((shares > 0).sum()), "evenness": evenness, "shares": shares.tolist()}


def taken_for(classes: Tensor, asked: Tensor, names: list[str]) -> dict:
    """Which share of the samples a classifier takes for the class that was asked for, in all and by class.

    classes, asked: int64 (N,), numbers of names.
    """
    right = (classes == asked).double()
    by_class = {name: right[asked == i].mean().item() for i, name in enumerate(names) if (asked == i).any()}
    return {"share": right.mean().item(), "by_class": by_class}


def look(pictures: Tensor) -> dict:
    """Mean brightness, from 0 (black) to 1, also of each channel, and fine detail.

    Fine detail is the share of the variance at wavelengths, across or down, below four pixels.
    """
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64).abs() for side in pictures.shape[2:])
    fine = torch.maximum(down[:, None], across) > 0.25
    by_channel, power = 0.0, torch.zeros(fine.shape, dtype=torch.float64)
    for part in pictures.split(500):
        x = part.double() / 255
        by_channel += x.mean((2, 3)).sum(0) / len(pictures)
        power += torch.fft.fft2(x - x.mean((2, 3), keepdim=True)).abs().square().sum((0, 1))
    detail = (power[fine].sum() / power.sum().clamp(min=1e-12)).item()
    return {"brightness": by_channel.mean().item(), "by_channel": by_channel.tolist(), "fine_detail": detail}


# --- all numbers together ---------------------------------------------------------------------------------------------


class Evaluation:
    """Compares `count` samples with real pictures. All that depends only on the real pictures is computed once."""

    def __init__(self, real: RealPictures, extractor: Extractor | None, count: int, mirrored: bool = False):
        """mirrored: the training mirrored pictures, so that a mirror image of one is a copy, too."""
        self.extractor, self.training, self.mirrored = extractor, real.training, mirrored
        self.real = {"n": len(real.pictures), "look": look(real.pictures)}
        some = real.training if real.held_out is None else real.held_out
        own = shuffled(torch.arange(len(some)))[:count]
        some, own = some[own], own if some is real.training else None
        self.real_apart, _ = nearest_of_views(self.views(some), real.training, own)
        if extractor:
            reference, others, others_are = real.floor()
            self.features = extractor.features(reference)
            same = reference is real.training
            self.training_features = self.features if same else extractor.features(real.training)
            views = [extractor.features(view) for view in self.views(some)]
            self.real_apart_in_features, _ = nearest_of_views(views, self.training_features, own)
            floor = distances(extractor.features(others[:count]), self.features)
            self.floor = floor | {"of": others_are, "to": len(reference)}
            if extractor.classes:
                self.real["classes"] = class_shares(extractor.classes(self.features))

    def views(self, pictures: Tensor) -> list[Tensor]:
        return [pictures, pictures.flip(-1)] if self.mirrored else [pictures]

    def __call__(
        self, samples: Tensor, asked: Tensor | None = None, names: list[str] | None = None
    ) -> tuple[dict, Tensor, Tensor]:
        """(report, apart, number): all numbers, ready for JSON, and the nearest training picture of each sample.

        asked, names: see `taken_for`; of a network with labels.
        If the floor has fewer pictures than there are samples, the report also has the distances of as many samples as
        the floor has ("as_few"), because distances fall as the number of samples grows.
        """
        views = self.views(samples)
        apart, number = nearest_of_views(views, self.training)
        report = {"n": len(samples), "look": look(samples), "reference": self.real, "extractor": None}
        report["nearest"] = closeness(apart, self.real_apart, len(self.training), self.mirrored)
        if self.extractor:
            report["extractor"] = {"name": self.extractor.name, "sha256": self.extractor.sha256}
            in_features = [self.extractor.features(view) for view in views]
            features, few = in_features[0], self.floor["n"]
            near, _ = nearest_of_views(in_features, self.training_features)
            real_near = self.real_apart_in_features
            report["nearest_in_features"] = closeness(near, real_near, len(self.training), self.mirrored)
            report |= distances(features, self.features) | {"floor": self.floor}
            report["as_few"] = distances(features[:few], self.features) if few < len(samples) else None
            if self.extractor.classes:
                classes = self.extractor.classes(features)
                report["classes"] = class_shares(classes)
                if asked is not None:
                    report["as_asked"] = taken_for(classes, asked, names)
        return report, apart, number


def summary(report: dict) -> str:
    """A report of test_solver.py in a few lines, with the values of real pictures in brackets."""
    real, used, floor = (report.get(key) for key in ("reference", "extractor", "floor"))
    sampler = report["sample_info"] + (f", guidance {report['guidance']:g}" if "guidance" in report else "")
    lines = [sampler + ", seed {seed}: {n:,} samples of {model} in {seconds} s".format(**report)]
    lines[0] += f", against {real['n']:,} pictures of {report['data']}'s {report['split']} split"
    if used:
        lines.append(f"features: {used['name']}, SHA-256 {used['sha256'][:8]}…; distances to {floor['to']:,} pictures")
        for key, error in (("frechet", "frechet_error"), ("kernel", "kernel_deviation")):
            parts = [part for part in (report, report["as_few"], floor) if part]
            values = [f"{part[key]:.5g} ± {part[error]:.2g} of {part['n']:,}" for part in parts]
            lines.append(f"{key} distance {', '.join(values[:-1])} (real: {values[-1]}, {floor['of']})")
        for key in ("sample_precision", "sample_recall"):
            values = [f"{part[key]:.3f} of {min(part['n'], floor['to']):,}" for part in parts]
            lines.append(f"{key.removeprefix('sample_')} {', '.join(values[:-1])} (real: {values[-1]})")
    for key, near in [(key, report[key]) for key in ("nearest", "nearest_in_features") if key in report]:
        lines.append(
            f"{key.replace('_', ' ')} of {near['n']:,} training pictures{', also mirrored' * near['mirrored']}: "
        )
        lines[-1] += f"distance {near['samples']:.4f} ({near['real']:.4f}); "
        lines[-1] += (
            f"{near['closer_than_99_percent_of_real']:.1%} of the samples are closer than 99 % of real pictures are"
        )
    for key in ("brightness", "fine_detail"):
        lines.append(f"{key.replace('_', ' ')} {report['look'][key]:.4f} ({real['look'][key]:.4f})")
    if "classes" in report:
        classes, shares = report["classes"], " ".join(f"{share:.1%}" for share in report["classes"]["shares"])
        lines.append(f"{classes['covered']} classes, evenness {classes['evenness']:.4f} ")
        lines[-1] += f"({real['classes']['evenness']:.4f}): {shares}"
    if "as_asked" in report:
        asked = report["as_asked"]
        least = min(asked["by_class"], key=asked["by_class"].get)
        lines.append(f"{asked['share']:.1%} are taken for the class that was asked for ")
        lines[-1] += f"({asked['real']:.1%}); of {least}, the least, {asked['by_class'][least]:.1%}"
    return "\n".join(lines)
