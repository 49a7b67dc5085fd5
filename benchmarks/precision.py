"""Measures what bfloat16 costs: the same small networks, trained in both precisions on Fashion-MNIST at 16x16.

    python benchmarks/precision.py                                            # an hour and a half on one core
    python benchmarks/precision.py --objective pred_v --set max_steps=500     # a part of it

Networks of one objective and seed differ only in the precision of their training. Each is measured in float32, with
its averaged weights:
    the loss of the test split by quarter of t, with the same t and noise for every network;
    the Fréchet distance of DDIM_50 samples, from the same noise, to 10,000 training pictures, in the features of a
    classifier for 16x16 pictures that is trained first.
Run the same command again to resume after an interruption.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from classifier import train_classifier
from common import recipe_with, train_quietly

from datasets import load_images, load_labelled, normalize, to_uint8
from diffusion.gaussian import OBJECTIVES
from evaluation.distances import GROUPS, Reference, frechet
from evaluation.features import batched
from runs.run import Run, load_run
from training.held_out import quarter_means, quarter_sums
from utils.command_line import ArgumentParser, number, run
from utils.device import pick_device

SAMPLER = "DDIM_50_0p0"
SETTINGS = {"image_size": 16, "model_channels": 32, "channel_mult": "1,2,2", "num_res_blocks": 1, "max_steps": 2000}
SETTINGS |= {"learning_rate": 5e-4, "ema_decay": 0.999, "sample_num": 36, "sample_every": 1_000_000}


@torch.inference_mode()
def held_out_loss(trained: Run, pictures: torch.Tensor) -> list[float]:
    """The mean loss in each quarter of t, and of all t. pictures: uint8 (N, C, S, S)."""
    T, x_start, generator = trained.diffusion.timestep_num, normalize(pictures), torch.Generator().manual_seed(1)
    t = torch.randint(T, (len(x_start),), generator=generator)
    noise = torch.randn(x_start.shape, generator=generator)
    batches = zip(*(values.to(trained.device).split(500) for values in (x_start, t, noise)), strict=True)
    losses = [trained.diffusion.training_losses(trained.network, *batch).cpu() for batch in batches]
    mean, by_quarter = quarter_means(quarter_sums(torch.cat(losses), t, T))
    return [*by_quarter, mean]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", nargs="+", choices=OBJECTIVES, default=["pred_noise", "pred_x0", "pred_v"])
    parser.add_argument("--seeds", nargs="+", type=number(0, 2**63 - 1), default=[0, 1], metavar="S")
    parser.add_argument("--sample_num", type=number(GROUPS), default=1000, metavar="N", help="samples of each network")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override any key, for every network")
    parser.add_argument(
        "--save_dir", default="train_results/precision", metavar="D", help="where the networks are kept"
    )
    parser.add_argument("--data_path", default="data/fashion_mnist", metavar="P", help="where Fashion-MNIST is")
    parser.set_defaults(data_name="Fashion_Mnist")
    args = parser.parse_args()
    device, size = pick_device(), recipe_with("any", SETTINGS, args)["image_size"]
    train, labels, _ = load_labelled(args.data_name, args.data_path, "train", size, 1)
    test = load_images(args.data_name, args.data_path, "test", size, 1)
    net = train_classifier(train, labels, device, epochs=3)
    features = batched(lambda pictures: net[:-1](normalize(pictures.to(device))).cpu())
    test, real = torch.from_numpy(test), Reference(features(torch.from_numpy(train[:10_000])))
    floor, _ = frechet(features(test[: args.sample_num]), real)
    print(f"Fréchet distance of {args.sample_num:,} test pictures: {floor:.2f}")
    print("| objective | precision | seed | loss, t < T/4 | T/4 to T/2 | T/2 to 3T/4 | t ≥ 3T/4 | all t | distance |")
    print(f"|{' --- |' * 9}", flush=True)
    for objective, precision, seed in product(args.objective, ("fp32", "bf16"), args.seeds):
        settings = SETTINGS | {"objective": objective, "precision": precision, "seed": seed}
        recipe = recipe_with(f"{objective}_{precision}_{seed}", settings, args)
        trained = load_run(train_quietly(recipe)).to(device)
        losses = " | ".join("–" if loss is None else f"{loss:.4f}" for loss in held_out_loss(trained, test))
        distance, _ = frechet(features(to_uint8(trained.sample(args.sample_num, SAMPLER))), real)
        print(f"| {objective} | {precision} | {seed} | {losses} | {distance:.2f} |", flush=True)


if __name__ == "__main__":
    run(main)
