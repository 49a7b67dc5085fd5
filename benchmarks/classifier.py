"""Trains the small classifier of a data set, whose last hidden layer test_solver.py measures Fréchet distances in.

    python benchmarks/classifier.py --data_name Fashion_Mnist

writes checkpoints/classifier_fashion_mnist.safetensors. The classifier learns the labels of the training split; its
accuracy on the test split is printed.
"""

import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from datasets import load_labelled, normalize
from evaluation.features import batched, classifier, classifier_file
from runs.config import load_recipe
from training.optimizer import Muon
from utils.command_line import ArgumentParser, run
from utils.device import pick_device

EPOCHS = {"Digits": 100, "Mnist": 5, "Fashion_Mnist": 5, "Cifar10": 12}
BATCH_SIZE = 100


def varied(x: Tensor) -> Tensor:
    """Half of the pictures (N, C, S, S) mirrored, and all moved by up to four pixels; the edge is reflected."""
    x = torch.where((torch.rand(len(x)) < 0.5)[:, None, None, None], x.flip(-1), x)
    size, padded = x.shape[-1], F.pad(x, (4, 4, 4, 4), "reflect")
    places = torch.randint(9, (len(x), 2)).tolist()
    return torch.stack([p[:, i : i + size, j : j + size] for p, (i, j) in zip(padded, places, strict=True)])


def train_classifier(pictures: np.ndarray, labels: np.ndarray, device: torch.device, epochs: int) -> nn.Sequential:
    """Pictures uint8 (N, C, S, S) with at least 100 of them, labels (N,) from 0 to 9. Returns the classifier in eval
    mode. Colour pictures are varied, their labels smoothed, and Muon trains the classifier instead of Adam."""
    torch.manual_seed(0)
    x, y = normalize(torch.tensor(pictures)), torch.tensor(labels).long()
    net, steps, colour = classifier(x.shape[1]).to(device), len(x) // BATCH_SIZE, x.shape[1] == 3
    optimizer = (Muon if colour else torch.optim.Adam)(net.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3 if colour else 2e-3, epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: steps * BATCH_SIZE].view(-1, BATCH_SIZE):
            batch = varied(x[rows]) if colour else x[rows]
            loss = F.cross_entropy(net(batch.to(device)), y[rows].to(device), label_smoothing=0.1 * colour)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return net.eval()


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", required=True, choices=EPOCHS)
    parser.add_argument("--data_path", type=Path, metavar="P", help="where the data are (default: as in config.yaml)")
    args = parser.parse_args()
    recipe = load_recipe(Path(__file__).parent.parent / "config.yaml", args.data_name)
    path, size, device = args.data_path or Path(recipe["data_path"]), recipe["image_size"], pick_device()
    train, labels, _ = load_labelled(args.data_name, path, "train", size, recipe["image_channel"])
    test, test_labels, _ = load_labelled(args.data_name, path, "test", size, recipe["image_channel"])
    net = train_classifier(train, labels, device, EPOCHS[args.data_name])
    classes = batched(lambda pictures: net(normalize(pictures.to(device))).argmax(1).cpu())(torch.tensor(test))
    accuracy = (classes.numpy() == test_labels).mean()
    file = classifier_file(args.data_name)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in net.state_dict().items()}
    file.write_bytes(safetensors.torch.save(tensors, {"image_size": str(size)}))
    print(f"{file}: {accuracy:.2%} of {len(test):,} test pictures correct, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    run(main)
