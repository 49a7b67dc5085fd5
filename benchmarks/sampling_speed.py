"""How fast is sampling, beside diffusers' DDIMPipeline with the same weights and steps?

    python benchmarks/sampling.py                                             # the default network, fresh weights
    python benchmarks/sampling.py --model_path train_results/digits/digits.pt # and what bf16 does to its pictures

All contestants run in turn, round after round; medians are printed. "overhead" is what a sampler's whole time has over
its network's bare calls, of which it makes one a step.
"""

import statistics
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from sharing.diffusers_folder import scheduler_configuration, to_unet2d

from datasets import to_uint8
from diffusion import SampleNoise, SampleSpec
from utils.checkpoint import Run, build, load_run
from utils.device import pick_device, ready_to_sample, sampling_precision
from utils.recipe import plain_recipe


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", type=Path)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also our compiled network, on CUDA")
    args = parser.parse_args()
    device = pick_device()
    torch.manual_seed(0)
    if args.model_path:
        run = load_run(args.model_path)
    else:
        recipe = plain_recipe("benchmark")
        run = Run(*build(recipe), recipe, 0, "raw")
        nn.init.normal_(run.model.eval().out[2].weight, std=0.01)
    net, diffusion, recipe = run.model, run.diffusion, run.recipe
    twin = to_unet2d(run).to(device)
    shape = (args.batch_size, recipe["image_channel"], recipe["image_size"], recipe["image_size"])
    spec = SampleSpec("DDIM", args.steps, 0.0)
    scheduler = DDIMScheduler.from_config(scheduler_configuration(recipe, diffusion))
    pipeline = DDIMPipeline(twin, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    net.to(device)
    diffusion.to(device)
    x, t = torch.randn(shape, device=device), torch.full((args.batch_size,), 500, device=device)
    with torch.inference_mode():
        difference = (net(x, t) - twin(x, t).sample).abs().max().item()
    print(
        f"{device}, {torch.get_num_threads()} threads; {sum(p.numel() for p in net.parameters()):,} parameters, ",
        end="",
    )
    print(f"batch {tuple(shape)}, {spec}; the two networks' outputs are {difference:.1e} apart")

    def ours(precision, compile=False):
        network = ready_to_sample(net, device, precision, compile)

        def whole():
            noise = SampleNoise(0, range(args.batch_size))
            return to_uint8(diffusion.sample(network, noise.draw(shape, torch.float32, device), spec, noise)).cpu()

        def bare():
            with torch.inference_mode():
                for _ in range(args.steps):
                    output = network(x, t)
            return output.cpu()

        return whole, bare

    def theirs(autocast):
        def whole():
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                return pipeline(args.batch_size, num_inference_steps=args.steps, output_type="np").images

        def bare():
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                for _ in range(args.steps):
                    output = twin(x, t).sample
            return output.cpu()

        return whole, bare

    contestants = {"diffusers fp32": theirs(False), "ours fp32": ours("fp32"), "diffusers bf16": theirs(True)}
    contestants["ours bf16"] = ours("bf16")
    if args.compile:
        contestants["ours bf16, compiled"] = ours("bf16", compile=True)
    seconds = {name: ([], []) for name in contestants}
    for round_ in range(args.rounds + 1):  # the first one warms up
        for name, calls in contestants.items():
            for call, times in zip(calls, seconds[name], strict=True):
                began = time.perf_counter()
                call()
                if round_:
                    times.append(time.perf_counter() - began)
    base = statistics.median(seconds["diffusers fp32"][0])
    print(f"{'':22}images/s   times diffusers fp32   network alone   overhead a step")
    for name, (whole, bare) in seconds.items():
        all_, network = statistics.median(whole), statistics.median(bare)
        overhead = f"{1e3 * (all_ - network) / args.steps:8.2f} ms ({(all_ - network) / all_:5.1%})"
        print(f"{name:22}{args.batch_size / all_:8.2f}{base / all_:23.2f}{network:14.3f} s   {overhead}")
    print(f"our default precision here is {sampling_precision('auto', device, recipe['objective'])}")
    if args.model_path:
        full, half = (ours(precision)[0]().int() for precision in ("fp32", "bf16"))
        apart = (full - half).abs()
        print(f"bf16 against fp32, of 255: largest {apart.max()}, mean {apart.float().mean():.2f}, ", end="")
        print(f"more than 8 apart {(apart > 8).float().mean():.2%} of the pixels")


if __name__ == "__main__":
    main()
