"""How good are samples? Distances to real pictures, classes, nearest neighbours, brightness and fine detail.

All pictures are uint8 (N, C, H, W): samples are rounded to the same eight bits as real pictures. To add a number,
compute it in `Evaluation.__call__`, or in evaluation/distances.py if it is one of features, and print it in `summary`.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from evaluation.distances import Reference, distances, frechet
from evaluation.features import Extractor, kept
from evaluation.neighbours import closeness, nearest_of_views, shapes
from evaluation.parts import in_parts, shuffled
from evaluation.real_pictures import RealPictures


def class_shares(classes: Tensor, count: int = 10) -> dict:
    """The number of classes that occur, the share of each, and their evenness: entropy over its maximum, 1 at most."""
    shares = torch.bincount(classes, minlength=count).double() / len(classes)
    evenness = torch.special.entr(shares).sum().item() / math.log(count)
    return {"covered": int((shares > 0).sum()), "evenness": evenness, "shares": shares.tolist()}


def look(pictures: Tensor) -> dict:
    """Mean brightness, from 0 (black) to 1, also of each channel, and fine detail.

    Fine detail is the share of the variance at wavelengths, across or down, below four pixels.
    """
    down, across = (torch.fft.fftfreq(side, dtype=torch.float64).abs() for side in pictures.shape[2:])
    fine = torch.maximum(down[:, None], across) > 0.25
    by_channel, power = 0.0, torch.zeros(fine.shape, dtype=torch.float64)
    for part in in_parts(pictures, 1 << 22):
        x = pictures[part].double() / 255
        by_channel += x.mean((2, 3)).sum(0) / len(pictures)
        power += torch.fft.fft2(x - x.mean((2, 3), keepdim=True)).abs().square().sum((0, 1))
    detail = (power[fine].sum() / power.sum().clamp(min=1e-12)).item()
    return {"brightness": by_channel.mean().item(), "by_channel": by_channel.tolist(), "fine_detail": detail}


class Evaluation:
    """Compares `count` samples with real pictures. All that depends only on the real pictures is computed once."""

    def __init__(self, real: RealPictures, extractor: Extractor | None, count: int, mirrored=False, published=None):
        """mirrored: the training mirrored pictures, so that a mirror image of one is a copy, too.

        published: Statistics in the extractor's features, for one more Fréchet distance.
        """
        self.extractor, self.training, self.mirrored, self.published = extractor, real.training, mirrored, published
        self.real = {"n": len(real.pictures), "look": look(real.pictures)}
        self.training_features = None
        some = real.unseen
        rows, features = shuffled(len(some))[:count], extractor and kept(extractor, real.folders)
        if extractor:
            reference, others, others_are = real.floor(count)
            compared = features(real.pictures)
            if real.pictures is real.training:
                self.training_features = compared
            elif not extractor.large:
                self.training_features = features(real.training)
            self.reference = Reference(compared[reference])
            self.distances = partial(distances, real=self.reference, least=extractor.least)
            self.floor = self.distances(features(others))
            self.floor |= {"of": others_are, "to": len(self.reference.features)}
            if extractor.classes:
                self.real["classes"] = class_shares(extractor.classes(self.reference.features))
        self.real_near, _, _ = self.near(some[rows], rows if real.held_out is None else None, features)

    def near(
        self, pictures: Tensor, own: Tensor | None = None, compute: Callable | None = None
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor, Tensor | None]:
        """(near, number, features): for pixels and for features the distance to the nearest training picture and how it
        stands out, see `nearest`; the number of the nearest in pixels; and the features of the pictures. Without
        training features, for which a large network needs many minutes, there are none.

        In pixels it stands out whatever the contrast: a pale picture is no copy, but a pale copy is.
        """
        views, features = [pictures, pictures.flip(-1)] if self.mirrored else [pictures], [None]
        apart, number, _ = nearest_of_views(views, self.training, own)
        near = {"nearest": (apart, nearest_of_views(views, self.training, own, of=shapes)[2])}
        if self.training_features is not None:
            features = [(compute or self.extractor.features)(view) for view in views]
            near["nearest_in_features"] = nearest_of_views(features, self.training_features, own)[::2]
        return near, number, features[0]

    def __call__(
        self, samples: Tensor, asked: Tensor | None = None, names: list[str] | None = None
    ) -> tuple[dict, Tensor, Tensor]:
        """(report, apart, number): all numbers, ready for JSON, and the nearest training picture of each sample.

        asked: int64 (N,), the class of each sample of a network with labels, as a number of `names`.
        If the floor has fewer pictures than there are samples, the report also has the distances of as many samples as
        the floor has ("as_few"), because distances fall as the number of samples grows.
        """
        near, number, features = self.near(samples)
        report = {"n": len(samples), "look": look(samples), "reference": self.real, "extractor": None}
        for space, found in near.items():
            report[space] = closeness(found, self.real_near[space], len(self.training), self.mirrored)
        if self.extractor:
            features = self.extractor.features(samples) if features is None else features
            report["extractor"] = {"name": self.extractor.name, "sha256": self.extractor.sha256}
            report |= self.distances(features) | {"floor": self.floor}
            few = self.floor["n"]
            report["as_few"] = self.distances(features[:few]) if few < len(samples) else None
            if self.published:
                value, error = frechet(features, self.published)
                report["published"] = {"n": len(samples), "frechet": value, "frechet_error": error}
            if self.extractor.classes:
                classes = self.extractor.classes(features)
                report["classes"] = class_shares(classes)
                if asked is not None:
                    right = (classes == asked).double()  # whether the classifier takes it for what was asked for
                    by_class = {names[i]: right[asked == i].mean().item() for i in asked.unique().tolist()}
                    report["as_asked"] = {"share": right.mean().item(), "by_class": by_class}
        return report, near["nearest"][0], number


def told(part: dict, key: str) -> str:
    """A number with its error, if it has one, and with the number of pictures."""
    if key not in part:
        return f"not of {part['n']:,}, which are too few"
    error = f" ± {part[f'{key}_error']:.2g}" if f"{key}_error" in part else ""
    return f"{part[key]:.5g}{error} of {part['n']:,}"


def summary(report: dict) -> str:
    """A report of test_solver.py in a few lines, with the values of real pictures in brackets."""
    real, used, floor = report["reference"], report["extractor"], report.get("floor")
    sampler = f"{report.get('sample_info')}" + (f", guidance {report['guidance']:g}" if "guidance" in report else "")
    drawn = sampler + ", seed {seed}: {n:,} samples of {model}" + " in {seconds} s" * ("seconds" in report)
    lines = [("{n:,} pictures in {samples}" if "samples" in report else drawn).format(**report)]
    lines[0] += f", against {real['n']:,} pictures of {report['data']}'s {report['split']} split"
    lines[0] += f"; classes {report['classes_drawn']}" if "labels" in report else ""
    if used:
        parts = [part for part in (report, report["as_few"], floor) if part]
        lines.append(f"features: {used['name']}, SHA-256 {used['sha256'][:8]}…; distances to {floor['to']:,} pictures")
        lines.append(f"real: {floor['of']}; ± is the standard error of drawing other samples, or other real pictures")
        for key in ("kernel", "frechet", "sample_precision", "sample_recall", "sample_density", "sample_coverage"):
            values, name = [told(part, key) for part in parts], key.removeprefix("sample_")
            lines.append(f"{name}{' distance' * (name == key)} {', '.join(values[:-1])} (real: {values[-1]})")
        if "published" in report:
            lines.append(f"frechet distance to the published statistics {told(report['published'], 'frechet')}")
    for key in [key for key in ("nearest", "nearest_in_features") if key in report]:
        near, views = report[key], ", also mirrored" * report[key]["mirrored"]
        line = f"{key.replace('_', ' ')} of {near['n']:,} training pictures{views}: distance {near['samples']:.4f} "
        line += f"({near['real']:.4f}); {near['copies']:.1%} of the samples count as copies, as 1% of real pictures do"
        lines.append(line)
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
