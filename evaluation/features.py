"""The features that distances are measured in: the last hidden layer of a small classifier, or Inception."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets import normalize
from evaluation.parts import in_parts
from files.seal import sha256_of

SHIPPED = Path(__file__).parent.parent / "checkpoints"
LAYOUTS = {1: ((32, 1), (64, 2), (128, 2)), 3: ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))}
# by the channels of the pictures: (channels, stride) of each convolution of the classifier
FEATURES = 64


@dataclass
class Extractor:
    """Computes features. name and sha256 (of the weights) identify them: distances in others are not comparable.

    features: uint8 (N, C, H, W) -> float32 (N, D) on the CPU. classes: features -> int64 (N,), if it can classify.
    """

    name: str
    sha256: str
    features: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor] | None = None


def extractor_for(dataset: str, channels: int, device: torch.device) -> Extractor | None:
    """The shipped classifier of the data set, if it is one of pictures with so many channels.

    For other colour pictures it is Inception or, where that is missing, the features of CIFAR-10's classifier, without
    its classes. None for other grey pictures. What is missing is printed.
    """
    file = classifier_file(dataset)
    if file.exists() and channels_of(file) == channels:
        return shipped_classifier(file, device)
    if channels == 3:
        return inception(device) or replace(shipped_classifier(classifier_file("Cifar10"), device), classes=None)
    print(f"no distances: no classifier is shipped for grey pictures of {dataset}")
    return None


def classifier(channels: int) -> nn.Sequential:
    """The convolutions of LAYOUTS, averages over the quarters of the picture, FEATURES hidden units, ten classes."""
    convolutions, inside = [], channels
    for outside, stride in LAYOUTS[channels]:
        convolutions += [nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU()]
        inside = outside
    pooled = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inside, FEATURES), nn.ReLU()]
    return nn.Sequential(*convolutions, *pooled, nn.Linear(FEATURES, 10))


def classifier_file(dataset: str) -> Path:
    """Where the shipped classifier of a data set is, if there is one."""
    return SHIPPED / f"classifier_{dataset.lower()}.safetensors"


def channels_of(file: Path) -> int:
    """The channels of the pictures that a classifier was trained on."""
    with safetensors.safe_open(file, "pt") as content:
        return content.get_slice("0.weight").get_shape()[1]


def shipped_classifier(file: Path, device: torch.device) -> Extractor:
    """A classifier written by benchmarks/classifier.py. Others are resized to the square that it knows."""
    net = classifier(channels_of(file))
    with safetensors.safe_open(file, "pt") as content:
        size = int(content.metadata()["image_size"])
        net.load_state_dict({name: content.get_tensor(name) for name in content.keys()})
    net.to(device).eval()

    def features(pictures: Tensor) -> Tensor:
        x = normalize(pictures.to(device))
        if x.shape[2:] != (size, size):
            x = F.interpolate(x, size, mode="bilinear", antialias=True).clamp(-1, 1)
        return net[:-1](x).cpu()

    @torch.inference_mode()
    def classes(features: Tensor) -> Tensor:
        return net[-1](features.to(device)).argmax(1).cpu()

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Extractor(file.stem, digest, batched(features), classes)


def inception(device: torch.device) -> Extractor | None:
    """The Inception network of most published Fréchet distances, if torch-fidelity and its weights are installed."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    except (ImportError, OSError, RuntimeError) as error:  # the weights are downloaded
        print(f"features of CIFAR-10's classifier are used, not Inception's: pip install torch-fidelity ({error})")
        return None

    def features(pictures: Tensor) -> Tensor:
        return net(pictures.to(device))[0].cpu()

    return Extractor("inception-v3-compat", sha256_of(net.state_dict()), batched(features))


def batched(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, computed for at most 250 pictures at a time and without gradients."""

    @torch.inference_mode()
    def call(pictures: Tensor) -> Tensor:
        found = []
        for part in tqdm([*in_parts(pictures, 1 << 22, 250)], desc="features", leave=False, delay=2):
            found.append(features(pictures[part]))
        return torch.cat(found)

    return call
