"""How good are few steps? Fréchet distances of samples to real pictures, a line for each sampler.

    python benchmarks/quality.py --model_path train_results/digits/digits.pt --sample_info DDIM_50_0p0 DPMpp_10_0p0

The features are the last hidden layer of a small classifier, which is first trained here on the real labels of Digits
or Fashion_Mnist. Distances in other features, or from another number of samples, are other numbers: compare only what
one call prints. "±" is a jackknife standard error over ten groups of samples.
"""

import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(1, str(Path(__file__).parent.parent))
from classifier import labels_of, train_classifier

from datasets import load_images, normalize, to_uint8
from diffusion import SampleNoise, SampleSpec
from utils.checkpoint import load_run
from utils.device import pick_device, ready_to_sample, sampling_precision

FEW = {"seen": 45_000, "least": 3}  # pictures for the classifier


@torch.inference_mode()
def features(net: nn.Sequential, pictures: Tensor, device: torch.device) -> np.ndarray:
    """(N, D), float64, of uint8 pictures: all of them through the same eight bits."""
    parts = [net[:-1](normalize(part.to(device))).cpu() for part in pictures.split(500)]
    return torch.cat(parts).double().numpy()


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½) of the Gaussians with the same means and covariances (Heusel et al. 2017)."""
    c, d = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(c @ d).real.clip(0))
    return float(((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(c + d) - 2 * roots.sum())


def with_error(samples: np.ndarray, real: np.ndarray) -> str:
    parts = [frechet(np.delete(samples, np.s_[i::10], axis=0), real) for i in range(10)]
    return f"{frechet(samples, real):8.3f} ± {(9 * np.var(parts)) ** 0.5:.3f}"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", required=True, type=Path)
    parser.add_argument("--sample_info", nargs="+", default=["DDIM_50_0p0"])
    parser.add_argument("--sample_num", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    device = pick_device()
    run = load_run(args.model_path)
    diffusion, recipe = run.diffusion.to(device), run.recipe
    precision = sampling_precision(args.precision, device, recipe["objective"])
    network = ready_to_sample(run.model, device, precision)
    C, S = recipe["image_channel"], recipe["image_size"]
    train, test = (load_images(recipe["dataset"], recipe["data_path"], split, S, C) for split in ("train", "test"))
    train_labels, test_labels = labels_of(recipe["dataset"], Path(recipe["data_path"]))

    net = train_classifier(train, train_labels, device, **FEW)
    with torch.inference_mode():
        classes = torch.cat([net(normalize(part.to(device))).argmax(1).cpu() for part in torch.tensor(test).split(500)])
    print(f"classifier: {(classes.numpy() == test_labels).mean():.1%} of {len(test)} held-out pictures right")
    reference = features(net, torch.tensor(train[:10_000]), device)
    floor = features(net, torch.tensor(test[: args.sample_num]), device)
    print(
        f"{f'{len(floor)} held-out pictures':<20}{with_error(floor, reference)}   (to {len(reference)} training ones)"
    )

    for text in args.sample_info:
        spec, began, parts = SampleSpec.parse(text), time.monotonic(), []
        for start in range(0, args.sample_num, args.batch_size):
            noise = SampleNoise(args.seed, range(start, min(start + args.batch_size, args.sample_num)))
            x = noise.draw((min(args.batch_size, args.sample_num - start), C, S, S), torch.float32, device)
            parts.append(to_uint8(diffusion.sample(network, x, spec, noise)).cpu())
        seconds = time.monotonic() - began
        samples = features(net, torch.cat(parts), device)
        print(f"{spec!s:<20}{with_error(samples, reference)}   {len(samples)} samples, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
