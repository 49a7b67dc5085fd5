"""How fast is training, beside a plain loop, diffusers' UNet2DModel and denoising_diffusion_pytorch?

    pip install -r requirements-dev.txt denoising_diffusion_pytorch
    python benchmarks/training.py                      # 35.7M parameters and a small network, batches of 16 and 64
    python benchmarks/training.py --width 32 --batch_size 16

All train on the same folder of 1,500 small PNGs, in turn, round after round; medians are printed. Ours is
train_solver.py itself, as it comes: checkpoints and previews aside, everything counts. The plain loop decodes and
transforms picture by picture, computes in float32 and reads the loss at each step; diffusers' network, of the same
shape as ours, runs in that loop. denoising_diffusion_pytorch has its own Trainer, and a network of the same widths.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path
from unittest.mock import patch

import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

sys.path.insert(1, str(Path(__file__).parent.parent))
from sampling import diffusers_twin
from training.log import read_log
from training.processes import Processes

import train_solver
from datasets import load_images
from diffusion import GaussianDiffusion
from utils.checkpoint import build
from utils.config import load_recipe
from utils.device import autocast, compiled, memory_format, pick_device, resolve_precision


class Pictures(Dataset):
    """Picture by picture: opened, resized, cropped, flipped, normalised."""

    def __init__(self, folder: Path):
        steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
        self.files = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def forever(loader):
    while True:
        yield from loader


def plain(network: nn.Module, folder: Path, batch_size: int, device: torch.device, half: bool):
    """A loop as it is written first. Returns what runs n steps and gives the seconds."""
    network, diffusion = network.to(device).train(), GaussianDiffusion()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.9, 0.99))
    batches = forever(DataLoader(Pictures(folder), batch_size, shuffle=True, drop_last=True))

    def output(x, t):
        y = network(x, t)
        return y if isinstance(y, torch.Tensor) else y.sample

    def steps(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            x_start = next(batches).to(device)
            t, noise = torch.randint(1000, (batch_size,), device=device), torch.randn_like(x_start)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = diffusion.training_losses(output, x_start, t, noise).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return time.perf_counter() - began

    return steps


def ours(recipe: dict, device: torch.device):
    """train_solver.py's own training, which goes on from its checkpoint at each call; and the shares of its time, where
    the device is the CPU and time can be taken so, that are not the network's forward and backward pass."""
    done, shares, inside = 0, [], []

    def timed(function):
        def call(*args):
            began = time.perf_counter()
            result = function(*args)
            if torch.is_grad_enabled() and not args[-1].is_meta:  # not held out, not where the memory is counted
                inside.append(time.perf_counter() - began)
            return result

        return call

    def steps(n: int) -> float:
        nonlocal done
        done += 2 * n  # each call starts anew, from the checkpoint: the first half warms up, the second counts
        now = recipe | {"max_steps": done, "log_every": n, "save_every": 2 * n, "sample_every": 2 * n}
        folder = Path(recipe["save_dir"]) / recipe["pth_save_name"]
        model, diffusion = build(now)
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), contextlib.ExitStack() as stack:
            stack.enter_context(patch.object(train_solver, "backward", timed(train_solver.backward)))
            diffusion.training_losses = timed(diffusion.training_losses)
            train_solver.train(now, model, diffusion, Processes(device), "auto", stack)
        first, second = read_log(folder / "metrics.jsonl")[-2:]
        seconds = second["seconds"] - first["seconds"]
        shares.append(1 - sum(inside[-2 * n :]) / seconds)  # two calls a step
        return seconds

    return steps, shares


def bare(recipe: dict, device: torch.device):
    """Nothing but our network's forward and backward pass, in the precision that ours has."""
    model = build(recipe)[0].to(device, memory_format=memory_format(device)).train()
    network = compiled(model, recipe["compile"], device)
    x = torch.randn(recipe["batch_size"], 3, 32, 32, device=device)
    t = torch.randint(1000, (len(x),), device=device)

    def steps(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            model.zero_grad()
            with autocast(recipe["precision"], device):
                output = network(x, t)
            output.backward(x.to(output.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    with FlopCounterMode(display=False) as counter:
        model(x[:1], t[:1]).sum().backward()
    return steps, counter.get_total_flops()


def lucidrains(folder: Path, work: Path, width: int, recipe: dict, half: bool):
    """denoising_diffusion_pytorch's Trainer as it comes, and its number of parameters; None if it is not installed."""
    try:
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
    except ImportError:
        return None, 0
    model = Unet(dim=width, dim_mults=tuple(recipe["channel_mult"]))
    trainer = Trainer(
        GaussianDiffusion(model, image_size=32), str(folder), train_batch_size=recipe["batch_size"], train_num_steps=0,
        save_and_sample_every=10**9, calculate_fid=False,
        results_folder=str(work / "theirs"),
    )  # fmt: skip

    def steps(n: int) -> float:
        trainer.train_num_steps += n
        began = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            with torch.autocast(trainer.device.type, torch.bfloat16, enabled=half):
                trainer.train()
        return time.perf_counter() - began

    return steps, sum(p.numel() for p in model.parameters())


def matrix_product_peak(device: torch.device) -> float:
    """bfloat16 operations a second in a large matrix product."""
    n, times = (8192, []) if device.type == "cuda" else (2048, [])
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    for _ in range(10):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times)


def measure(width: int, batch_size: int, rounds: int, steps: int, folder: Path, work: Path, device: torch.device):
    settings = [f"model_channels={width}", f"num_res_blocks={2 if width == 128 else 1}", f"batch_size={batch_size}"]
    settings += [
        "sample_num=1",
        "preview_info=DDIM_1_0p0",
        f"save_dir={work}",
        f"pth_save_name=ours_{width}_{batch_size}",
    ]
    recipe = load_recipe(work / "config.yaml", "Pictures", settings)
    network = build(recipe)[0]
    alone, flops = bare(recipe, device)
    peer, size = lucidrains(folder, work, width, recipe, False)
    mine, shares = ours(recipe, device)
    contestants = {
        "plain loop, float32": plain(build(recipe)[0], folder, batch_size, device, False),
        "diffusers, float32": plain(diffusers_twin(network, recipe), folder, batch_size, device, False),
        "diffusers, bfloat16": plain(diffusers_twin(network, recipe), folder, batch_size, device, True),
        "denoising_diffusion_pytorch, float32": peer,
        "denoising_diffusion_pytorch, bfloat16": lucidrains(folder, work, width, recipe, True)[0],
        f"ours, {resolve_precision(recipe['precision'], device)} (auto)": mine,
        "our network alone, float32": bare(recipe | {"precision": "fp32"}, device)[0],
        "our network alone": alone,
    }
    contestants = {name: call for name, call in contestants.items() if call}
    seconds = {name: [] for name in contestants}
    for round_ in range(rounds + 1):  # the first one warms up
        for name, call in contestants.items():
            taken = call(steps) / steps
            if round_:
                seconds[name].append(taken)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    *_, mine, _, network_alone = medians.values()
    print(
        f"\n{sum(p.numel() for p in network.parameters()):,} parameters (denoising_diffusion_pytorch {size:,}), ",
        end="",
    )
    print(f"batch {batch_size}, medians of {rounds} x {steps} steps")
    for name, value in medians.items():
        print(f"{name:40}{batch_size / value:9.2f} images/s   ours is {value / mine:5.2f} times as fast")
    share = statistics.median(shares[1:]) if device.type == "cpu" else 1 - network_alone / mine
    print(f"of our step, {share:.1%} is not the network's forward and backward pass")
    rate, peak = flops * batch_size / mine, matrix_product_peak(device)
    print(f"{rate / 1e12:.3g} of {peak / 1e12:.3g} TFLOP/s of a bfloat16 matrix product: {rate / peak:.1%}", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", nargs="+", type=int, default=[32, 128], help="128: two residual blocks, else one")
    parser.add_argument("--batch_size", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="a round; by default by the network's size")
    args = parser.parse_args()
    device = pick_device()
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "pictures"
        folder.mkdir()
        for i, picture in enumerate(load_images("Digits", "none", "train", 32, 3)):
            Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{i:04d}.png")
        block = {"Train_Setting": {}, "Train_Data": {"Pictures": {"data_path": str(folder), "horizontal_flip": True}}}
        (Path(work) / "config.yaml").write_text(yaml.safe_dump(block))
        for width in args.width:
            for batch_size in args.batch_size:
                steps = args.steps or max(
                    2, (128 if device.type == "cuda" else 48) * (1 if width == 128 else 8) // batch_size
                )
                measure(width, batch_size, args.rounds, steps, folder, Path(work), device)


if __name__ == "__main__":
    main()
