"""Trains the small classifiers whose last hidden layer is what evaluate measures distances in.

    python benchmarks/classifier.py --data_name Fashion_Mnist

It writes checkpoints/classifier_fashion_mnist.safetensors. From the real labels of the training split; the accuracy on
the test split is printed.
"""

import sys
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from evaluation.features import classifier, classifier_file

from datasets import DataError, load_images, normalize
from datasets.mnist import DEBIAN_FASHION, read_idx
from utils.config import load_recipe
from utils.device import pick_device
from utils.command_line import run


def labels_of(dataset: str, data_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) labels of a data set, in the order of its pictures."""
    if dataset == "Digits":
        return tuple(np.split(load_digits().target, [1500]))
    inside = {"Mnist": "MNIST", "Fashion_Mnist": "FashionMNIST"}[dataset]
    roots = [data_path, data_path / "raw", data_path / inside / "raw"]
    roots += [DEBIAN_FASHION] if dataset == "Fashion_Mnist" else []
    names = [f"{part}-labels-idx1-ubyte" for part in ("train", "t10k")]
    for root in roots:
        for suffix in (".gz", ""):
            if all((root / (name + suffix)).is_file() for name in names):
                return tuple(read_idx(root / (name + suffix)) for name in names)
    raise DataError(f"{data_path}: no {names[0]} and {names[1]}, packed or not")


def train_classifier(
    pictures: np.ndarray, labels: np.ndarray, device: torch.device, seen: int = 150_000, least: int = 5
) -> nn.Sequential:
    """On about `seen` pictures, each at `least` so many times."""
    torch.manual_seed(0)
    x, y = normalize(torch.tensor(pictures)), torch.tensor(labels).long()
    net = classifier(x.shape[1]).to(device)
    epochs = max(least, round(seen / len(x)))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * (len(x) // 100))
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 100 * 100].view(-1, 100):
            loss = F.cross_entropy(net(x[rows].to(device)), y[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return net.eval()


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", required=True, choices=("Digits", "Mnist", "Fashion_Mnist"))
    parser.add_argument("--data_path", type=Path)
    args = parser.parse_args()
    recipe = load_recipe(Path(__file__).parent.parent / "config.yaml", args.data_name)
    path, size, device = args.data_path or Path(recipe["data_path"]), recipe["image_size"], pick_device()
    train, test = (load_images(args.data_name, path, split, size, 1) for split in ("train", "test"))
    labels, test_labels = labels_of(args.data_name, path)
    net = train_classifier(train, labels, device)
    with torch.inference_mode():
        parts = [net(normalize(part.to(device))).argmax(1).cpu() for part in torch.tensor(test).split(500)]
    accuracy = (torch.cat(parts).numpy() == test_labels).mean()
    file = classifier_file(args.data_name)
    file.parent.mkdir(exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
    file.write_bytes(safetensors.torch.save(tensors, {"image_size": str(size)}))
    print(f"{file}: {accuracy:.2%} of {len(test)} test pictures right, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main)
