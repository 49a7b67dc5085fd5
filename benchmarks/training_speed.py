"""Compares the speed of training with a plain loop, diffusers' UNet2DModel and denoising_diffusion_pytorch.

    pip install -r requirements-dev.txt denoising_diffusion_pytorch
    python benchmarks/training_speed.py            # 35.7M parameters and a small network, batches of 16 and 64
    python benchmarks/training_speed.py --width 32 --batch_size 16

All contestants train on the same folder of 1,500 small PNGs, in turn, round after round, and medians are printed:
    ours: train_solver.py with its default settings. Everything but checkpoints and previews counts.
    ours, CUDA graphs: the same with compile=graphs, on CUDA.
    ours, not deterministic: the same with deterministic=false, on CUDA.
    plain loop: it decodes and transforms one picture at a time and reads the loss after each step.
    diffusers: the UNet2DModel that corresponds to our network, in the plain loop.
    denoising_diffusion_pytorch: its own Trainer, with a network of the same widths. It is left out in batches of less
        than 16, which it refuses. A library that is not installed is left out, too.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from itertools import chain, product, repeat
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from common import in_turn, seconds_of, train_quietly
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from datasets import load_images
from diffusion import GaussianDiffusion
from runs.network import build
from runs.recipe import plain_recipe
from runs.run import Run
from sharing.diffusers_folder import to_unet2d
from training.log import read_log
from training.way import compiled, prepare, usual_way
from utils.command_line import ArgumentParser, number, run
from utils.device import autocast, pick_device, resolve_precision

try:
    import denoising_diffusion_pytorch as lucidrains
except ImportError:
    lucidrains = None
try:
    import diffusers
except ImportError:
    diffusers = None

Steps = Callable[[int], float]  # trains n steps and returns their seconds


class Pictures(Dataset):
    """A folder of PNGs as float32 (3, 32, 32) in [-1, 1], one picture at a time."""

    def __init__(self, folder: Path):
        steps = [transforms.Resize(32), transforms.CenterCrop(32), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
        self.files = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[i]).convert("RGB"))


def write_pictures(folder: Path) -> None:
    """Digits as 1,500 PNGs of 32x32 RGB pixels."""
    folder.mkdir()
    for i, picture in enumerate(load_images("Digits", "", "train", 32, 3)):
        Image.fromarray(picture.transpose(1, 2, 0)).save(folder / f"{i:04d}.png")


def plain(network: nn.Module, recipe: dict, device: torch.device, half: bool) -> Steps:
    """A simple training loop for our network or that of diffusers, in bfloat16 if `half`."""
    network, diffusion, batch_size = network.to(device).train(), GaussianDiffusion(), recipe["batch_size"]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, betas=(0.9, 0.99))
    loader = DataLoader(Pictures(Path(recipe["data_path"])), batch_size, shuffle=True, drop_last=True)
    batches = chain.from_iterable(repeat(loader))  # epoch after epoch

    def model(x, t):
        output = network(x, t)
        return output if isinstance(output, torch.Tensor) else output.sample

    def step() -> None:
        x_start = next(batches).to(device)
        t, noise = torch.randint(1000, (batch_size,), device=device), torch.randn_like(x_start)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = diffusion.training_losses(model, x_start, t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return lambda n: seconds_of(lambda: [step() for _ in range(n)])


def ours(recipe: dict) -> Steps:
    """train_solver.py. Each call resumes from its checkpoint; half of its steps warm up, and the other half count."""
    done = 0

    def steps(n: int) -> float:
        nonlocal done
        done += 2 * n
        with redirect_stderr(StringIO()):
            settings = {"max_steps": done, "log_every": n, "save_every": 2 * n, "sample_every": 2 * n}
            file = train_quietly(recipe | settings)
        torch.use_deterministic_algorithms(False)  # training switched them on, and the others train without
        first, second = read_log(file.with_name("metrics.jsonl"))[-2:]
        return second["seconds"] - first["seconds"]

    return steps


def network_alone(recipe: dict, device: torch.device) -> Steps:
    """Only the forward and backward pass of our network."""
    layout = torch.channels_last if usual_way(recipe, device)["channels_last"] else torch.contiguous_format
    model = build(recipe)[0].to(device, memory_format=layout).train()
    network = compiled(model, recipe["compile"], device)
    x = torch.randn(recipe["batch_size"], 3, 32, 32, device=device)
    t = torch.randint(1000, (len(x),), device=device)

    def step() -> None:
        model.zero_grad()
        with autocast(recipe["precision"], device):
            output = network(x, t)
        output.backward(x.to(output.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def steps(n: int) -> float:
        prepare(device, recipe["deterministic"])  # as in the training, and only here
        seconds = seconds_of(lambda: [step() for _ in range(n)])
        torch.use_deterministic_algorithms(False)
        return seconds

    steps(1)  # compiles
    return steps


def their_trainer(recipe: dict, results: Path) -> Callable[[bool, int], float]:
    """denoising_diffusion_pytorch's Trainer: (half, n) -> seconds of n steps."""
    network = lucidrains.Unet(dim=recipe["model_channels"], dim_mults=tuple(recipe["channel_mult"]))
    trainer = lucidrains.Trainer(
        lucidrains.GaussianDiffusion(network, image_size=32), recipe["data_path"],
        train_batch_size=recipe["batch_size"], train_num_steps=0, save_and_sample_every=10**9, calculate_fid=False,
        results_folder=str(results),
    )  # fmt: skip
    print(f"denoising_diffusion_pytorch's network has {sum(p.numel() for p in network.parameters()):,} parameters")

    def steps(half: bool, n: int) -> float:
        trainer.train_num_steps += n
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            with torch.autocast(trainer.device.type, torch.bfloat16, enabled=half):
                return seconds_of(trainer.train)

    return steps


def matrix_product_speed(device: torch.device, precision: str) -> float:
    """Operations per second in the product of two large matrices."""
    n, half = 8192 if device.type == "cuda" else 1024, {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = half.get(precision, torch.float32)
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / min(seconds_of(lambda: (a @ a)[0, 0].item()) for _ in range(10))


def measure(width: int, batch_size: int, rounds: int, steps: int | None, work: Path) -> None:
    """Prints the table of one network and batch size."""
    torch._dynamo.reset()  # so that the network is compiled for this batch size alone
    device, blocks = pick_device(), 2 if width == 128 else 1
    settings = {"model_channels": width, "num_res_blocks": blocks, "batch_size": batch_size, "horizontal_flip": True}
    places = {"data_path": str(work / "pictures"), "save_dir": str(work), "pth_save_name": f"{width}_{batch_size}"}
    recipe = plain_recipe("Pictures", **settings, **places, sample_num=1) | {"preview_info": "DDIM_1_0p0"}
    precision = resolve_precision(recipe["precision"], device)
    steps = steps or (100 if device.type == "cuda" else max(2, 48 * (1 if width == 128 else 8) // batch_size))
    model, diffusion = build(recipe)
    print(f"\n{sum(p.numel() for p in model.parameters()):,} parameters, batch {batch_size}, ", end="")
    print(f"medians of {rounds} x {steps} steps")

    contestants: dict[str, Steps] = {"plain loop, fp32": plain(model, recipe, device, half=False)}
    if diffusers:
        twin = to_unet2d(Run(model, diffusion, recipe, 0, "raw"))
        contestants["diffusers, fp32"] = plain(twin, recipe, device, half=False)
        contestants["diffusers, bf16"] = plain(twin, recipe, device, half=True)
    if lucidrains and batch_size >= 16:  # the smallest that its Trainer accepts
        trainer = their_trainer(recipe, work / f"theirs_{width}_{batch_size}")
        contestants["denoising_diffusion_pytorch, fp32"] = partial(trainer, False)
        contestants["denoising_diffusion_pytorch, bf16"] = partial(trainer, True)
    contestants["our network alone, fp32"] = network_alone(recipe | {"precision": "fp32"}, device)
    contestants["our network alone"] = network_alone(recipe, device)
    if device.type == "cuda":
        for name, setting in (("CUDA graphs", {"compile": "graphs"}), ("not deterministic", {"deterministic": False})):
            contestants[f"ours, {name}"] = ours(recipe | setting | {"pth_save_name": f"{width}_{batch_size}_{name}"})
    contestants["ours"] = ours(recipe)

    calls = {name: partial(call, steps) for name, call in contestants.items()}
    seconds = in_turn(calls, rounds)  # of `steps` steps
    medians = {name: statistics.median(taken) / steps for name, taken in seconds.items()}
    for name, median in medians.items():
        speed, ratio = batch_size / median, median / medians["ours"]
        print(f"{name:36}{speed:9.2f} images/s   ours is {ratio:5.2f} times as fast")
    pairs = zip(seconds["our network alone"], seconds["ours"], strict=True)
    share = statistics.median(1 - network / step for network, step in pairs)
    print(f"ours is in {precision}; {share:.1%} of its time is not the network's forward and backward pass")
    with FlopCounterMode(display=False) as counter:
        x = torch.zeros(1, 3, 32, 32, device=device)
        model(x, torch.zeros(1, dtype=torch.int64, device=device)).sum().backward()
    rate, most = counter.get_total_flops() * batch_size / medians["ours"], matrix_product_speed(device, precision)
    print(f"it does {rate / 1e12:.3g} TFLOP/s, {rate / most:.1%} of those in a {precision} matrix product", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    widths = {"nargs": "+", "type": number(2, 8192), "default": [32, 128], "metavar": "W"}
    add("--width", help="128: two residual blocks, else one", **widths)
    add("--batch_size", nargs="+", type=number(1, 1500), default=[16, 64], metavar="B")
    add("--rounds", type=number(1), default=5, metavar="N")
    add("--steps", type=number(1), metavar="N", help="steps per round; default: by the network's size")
    args = parser.parse_args()
    print(f"{pick_device()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, library in (("diffusers", diffusers), ("denoising_diffusion_pytorch", lucidrains)):
        if not library:
            print(f"{name} is not installed: left out")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_pictures(work / "pictures")
        for width, batch_size in product(args.width, args.batch_size):
            measure(width, batch_size, args.rounds, args.steps, work)


if __name__ == "__main__":
    run(main)
