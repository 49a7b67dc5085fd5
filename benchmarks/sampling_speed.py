"""Compares the speed of sampling with diffusers' DDIMPipeline, with the same weights and steps.

    pip install -r requirements-dev.txt
    python benchmarks/sampling_speed.py                                                # the default network, untrained
    python benchmarks/sampling_speed.py --model_path checkpoints/digits.safetensors --steps 20

All contestants run in turn, round after round, and medians are printed. The overhead of a sampler is the time that it
takes beyond the calls of its network, one per step. With --model_path the pictures that our sampler draws in bfloat16
are also compared with those in float32.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import torch
from common import in_turn, seconds_of
from diffusers import DDIMPipeline, DDIMScheduler
from torch import Tensor, nn

from datasets import to_uint8
from diffusion.gaussian import Model
from files.errors import ConfigError
from runs.network import build
from runs.recipe import parse_spec, plain_recipe
from runs.run import Run, load_run
from sharing.diffusers_folder import to_unet2d
from sharing.diffusers_scheduler import scheduler_configuration
from utils.command_line import ArgumentParser, number, run
from utils.device import pick_device, sampling_precision


def untrained() -> Run:
    """The default network, with small random outputs: a new network's are all zero."""
    recipe = plain_recipe("Untrained")
    torch.manual_seed(0)
    model, diffusion = build(recipe)
    nn.init.normal_(model.out[2].weight, std=0.01)
    return Run(model.eval(), diffusion, recipe, 0, "raw")


@torch.inference_mode()
def repeated(network: Model, x: Tensor, t: Tensor, steps: int) -> Tensor:
    """Calls the network `steps` times. The output is on the CPU, so that the device has finished."""
    for _ in range(steps):
        output = network(x, t)
    return output.cpu()


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", type=Path, metavar="P", help="default: the default network, untrained")
    parser.add_argument("--batch_size", type=number(1), default=16, metavar="B")
    parser.add_argument("--steps", type=number(1, 1000), default=10, metavar="N", help="sampling steps")
    parser.add_argument("--rounds", type=number(1), default=5, metavar="N")
    parser.add_argument("--compile", action="store_true", help="also our compiled network; on CUDA only")
    args = parser.parse_args()
    device = pick_device()
    trained = (load_run(args.model_path) if args.model_path else untrained()).to(device)
    layout = torch.channels_last if device.type == "cpu" else torch.contiguous_format  # as ours has it
    spec = parse_spec(f"DDIM_{args.steps}_0p0", trained.recipe["timestep_num"], "--steps")
    if trained.recipe["num_classes"]:
        raise ConfigError(f"{args.model_path} has labels, which DDIMPipeline does not pass on: give weights without")
    try:
        twin = to_unet2d(trained).to(device, memory_format=layout)
    except ValueError as error:
        raise ConfigError(f"{args.model_path} cannot be compared: {error}") from error
    settings = scheduler_configuration(trained.recipe, trained.diffusion) | {"thresholding": False}
    pipeline = DDIMPipeline(twin, DDIMScheduler.from_config(settings))
    pipeline.set_progress_bar_config(disable=True)

    def ours(precision: str, compile: bool = False) -> tuple[Callable[[], Tensor], Model]:
        """Our sampler of one batch, and its network."""
        mine = replace(trained, network=None).to(device, precision, compile)
        return lambda: to_uint8(mine.sample(args.batch_size, spec, batch_size=args.batch_size)), mine.network

    def theirs(half: bool) -> tuple[Callable, Model]:
        """diffusers' sampler, in bfloat16 if `half`, and its network."""
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=half)
        sampler = partial(pipeline, args.batch_size, num_inference_steps=args.steps, output_type="np")
        return autocast(sampler), autocast(lambda x, t: twin(x, t).sample)

    contestants = {"diffusers fp32": theirs(half=False), "ours fp32": ours("fp32")}
    contestants |= {"diffusers bf16": theirs(half=True), "ours bf16": ours("bf16")}
    if args.compile:
        contestants["ours bf16, compiled"] = ours("bf16", compile=True)
    x, _ = trained.noise(range(args.batch_size), seed=0)
    t = torch.full((args.batch_size,), trained.diffusion.timestep_num // 2, device=device)
    first, second = (repeated(network, x, t, 1) for _, network in list(contestants.values())[:2])
    parameters = sum(p.numel() for p in trained.model.parameters())
    print(f"{device}, {torch.get_num_threads()} threads; {parameters:,} parameters, batch {tuple(x.shape)}, {spec}")
    print(f"the outputs of the two networks differ by at most {(first - second).abs().max():.1e}")

    calls = {}
    for name, (sampler, network) in contestants.items():
        calls[name, "sampler"] = partial(seconds_of, sampler)
        calls[name, "network"] = partial(seconds_of, partial(repeated, network, x, t, args.steps))
    medians = {call: statistics.median(seconds) for call, seconds in in_turn(calls, args.rounds).items()}
    base = medians["diffusers fp32", "sampler"]
    print(f"{'':22}images/s   times diffusers fp32   network alone   overhead per step")
    for name in contestants:
        whole, network = medians[name, "sampler"], medians[name, "network"]
        overhead = f"{1e3 * (whole - network) / args.steps:8.2f} ms ({(whole - network) / whole:5.1%})"
        print(f"{name:22}{args.batch_size / whole:8.2f}{base / whole:23.2f}{network:14.3f} s   {overhead}")
    print(f"--precision auto is {sampling_precision('auto', device, trained.recipe['objective'])} here")
    if args.model_path:
        full, half = (contestants[name][0]().int() for name in ("ours fp32", "ours bf16"))
        apart = (full - half).abs()
        differ = f"by at most {apart.max()} of 255, by {apart.float().mean():.2f} on average"
        print(f"bf16 and fp32 differ {differ}, and by more than 8 in {(apart > 8).float().mean():.2%} of the pixels")


if __name__ == "__main__":
    run(main)
