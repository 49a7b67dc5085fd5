"""Does bfloat16 cost quality? The same small network, seeds and steps in both precisions, on Fashion-MNIST at 16x16.

    python benchmarks/precision.py                                    # an hour and a half on one core
    python benchmarks/precision.py --objective pred_v --steps 500     # a part of it

Trains by train_solver.py, so that what is interrupted goes on. Then, always in float32 and with the averaged weights:
the loss of 10,000 held-out pictures by quarter of t, the same t and noise for every network, and the Fréchet distance
of DDIM_50 samples from the same noise, in the features of a classifier of such small pictures, trained here first.
"""

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

sys.path.insert(1, str(Path(__file__).parent.parent))
from classifier import labels_of, train_classifier
from evaluation.features import in_batches
from evaluation.numbers import frechet
from training.log import quarter_means, quarter_sums

from datasets import load_images, normalize, to_uint8
from diffusion import SampleNoise, SampleSpec
from utils.checkpoint import load_run
from utils.device import pick_device

ROOT = Path(__file__).parent.parent


@torch.inference_mode()
def held_out(run, pictures: torch.Tensor, device: torch.device) -> list[float]:
    """The loss in each quarter of t, and of all."""
    generator = torch.Generator().manual_seed(1)
    t = torch.randint(run.diffusion.timestep_num, (len(pictures),), generator=generator)
    noise = torch.randn(pictures.shape, generator=generator)
    parts = zip(*(values.split(500) for values in (normalize(pictures), t, noise)), strict=True)
    losses = [run.diffusion.training_losses(run.model, *(v.to(device) for v in part)).cpu() for part in parts]
    mean, by_quarter = quarter_means(quarter_sums(torch.cat(losses), t, run.diffusion.timestep_num))
    return [*by_quarter, mean]


def sampled(run, count: int, device: torch.device) -> torch.Tensor:
    """uint8 pictures (count, 1, 16, 16)."""
    parts = []
    for indices in torch.arange(count).split(100):
        noise = SampleNoise(0, indices.tolist())
        x = noise.draw((len(indices), 1, 16, 16), torch.float32, device)
        parts.append(to_uint8(run.diffusion.sample(run.model, x, SampleSpec.parse("DDIM_50_0p0"), noise)).cpu())
    return torch.cat(parts)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", nargs="+", default=["pred_noise", "pred_v", "pred_x0"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--learning_rate", default="5e-4")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--sample_num", type=int, default=1000)
    parser.add_argument("--save_dir", default="train_results/precision")
    parser.add_argument("--data_path", default="data/fashion_mnist")
    args = parser.parse_args()
    device = pick_device()
    train, test = (load_images("Fashion_Mnist", args.data_path, split, 16, 1) for split in ("train", "test"))
    net = train_classifier(train, labels_of("Fashion_Mnist", Path(args.data_path))[0], device, seen=45_000, least=3)
    features = in_batches(lambda pictures: net[:-1](normalize(pictures.to(device))).double().cpu())
    real = features(torch.from_numpy(train[:10_000]))
    floor = frechet(features(torch.from_numpy(test[: args.sample_num])), real)
    print(f"Fréchet distance of {args.sample_num} held-out pictures: {floor:.2f}")
    print("| objective | precision | seed | loss by quarter of t | | | | of all | Fréchet distance |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for objective in args.objective:
        for precision in args.precision:
            for seed in args.seeds:
                name = f"{objective}_{precision}_{seed}_{args.learning_rate}"
                settings = {"objective": objective, "precision": precision, "seed": seed, "pth_save_name": name}
                settings |= {"learning_rate": args.learning_rate, "max_steps": args.steps, "save_every": args.steps}
                settings |= {"image_size": 16, "model_channels": 32, "channel_mult": "1,2,2", "num_res_blocks": 1}
                settings |= {"ema_decay": 0.999, "sample_num": 36, "sample_every": 1_000_000}
                command = [sys.executable, ROOT / "train_solver.py", "--data_name", "Fashion_Mnist"]
                command += ["--data_path", args.data_path, "--save_dir", args.save_dir, "--set"]
                command += [f"{key}={value}" for key, value in settings.items()]
                subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                run = load_run(Path(ROOT, args.save_dir, name, f"{name}.pt"))
                run.model.to(device)
                run.diffusion.to(device)
                losses = " | ".join(f"{loss:.4f}" for loss in held_out(run, torch.from_numpy(test), device))
                distance = frechet(features(sampled(run, args.sample_num, device)), real)
                print(f"| {objective} | {precision} | {seed} | {losses} | {distance:.2f} |", flush=True)


if __name__ == "__main__":
    main()
