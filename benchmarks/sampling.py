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
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from datasets import to_uint8
from diffusion import GaussianDiffusion, SampleNoise, SampleSpec
from models import UNet
from models.unet import AttentionBlock, Downsample, ResidualBlock, Upsample, norm_groups
from utils.checkpoint import load_run
from utils.device import pick_device, ready_to_sample, sampling_precision


def diffusers_twin(net: UNet, recipe: dict) -> UNet2DModel:
    """diffusers' UNet2DModel with the shape and the weights of ours (attention at the coarsest level)."""
    width, mult = recipe["model_channels"], recipe["channel_mult"]
    levels, widest = len(mult), width * mult[-1]
    twin = UNet2DModel(
        sample_size=recipe["image_size"],
        in_channels=recipe["image_channel"],
        out_channels=recipe["image_channel"],
        block_out_channels=[width * m for m in mult],
        layers_per_block=recipe["num_res_blocks"],
        down_block_types=["DownBlock2D"] * (levels - 1) + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * (levels - 1),
        attention_head_dim=widest // recipe["num_heads"],
        norm_num_groups=norm_groups(width),
        freq_shift=0,
        downsample_padding=1,
    )
    sections = [*twin.down_blocks, twin.mid_block, *twin.up_blocks]
    pairs = [(net.down_blocks[0][0], twin.conv_in), (net.out[0], twin.conv_norm_out), (net.out[2], twin.conv_out)]
    pairs += [(net.time_embed[0], twin.time_embedding.linear_1), (net.time_embed[2], twin.time_embedding.linear_2)]
    theirs = [block for section in sections for block in section.resnets]
    for block, peer in zip(of_kind(net, ResidualBlock), theirs, strict=True):
        pairs += [(block.conv1[0], peer.norm1), (block.conv1[2], peer.conv1), (block.time_emb[1], peer.time_emb_proj)]
        pairs += [(block.conv2[0], peer.norm2), (block.conv2[3], peer.conv2)]
        if peer.conv_shortcut is not None:
            pairs.append((block.shortcut, peer.conv_shortcut))
    down = [peer for section in twin.down_blocks for peer in section.downsamplers or []]
    pairs += [(block.op, peer.conv) for block, peer in zip(of_kind(net, Downsample), down, strict=True)]
    up = [peer for section in twin.up_blocks for peer in section.upsamplers or []]
    pairs += [(block.conv, peer.conv) for block, peer in zip(of_kind(net, Upsample), up, strict=True)]
    with torch.no_grad():
        for ours, peer in pairs:
            peer.load_state_dict(ours.state_dict())
        theirs = [block for section in sections for block in getattr(section, "attentions", [])]
        for block, peer in zip(of_kind(net, AttentionBlock), theirs, strict=True):
            peer.group_norm.load_state_dict(block.norm.state_dict())
            C, heads = block.proj.out_channels, block.num_heads
            parts = block.qkv.weight.view(heads, 3, C // heads, C).unbind(1)  # head by head: q, k, v
            for linear, part in zip((peer.to_q, peer.to_k, peer.to_v), parts, strict=True):
                linear.weight.copy_(part.reshape(C, C))
                linear.bias.zero_()
            peer.to_out[0].weight.copy_(block.proj.weight.view(C, C))
            peer.to_out[0].bias.copy_(block.proj.bias)
    return twin.eval()


def of_kind(net: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, kind)]


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
        net, diffusion, recipe = run.model, run.diffusion, run.recipe
    else:
        recipe = {"image_size": 32, "image_channel": 3, "model_channels": 128, "channel_mult": [1, 2, 2, 2]}
        recipe |= {"num_res_blocks": 2, "num_heads": 4, "objective": "pred_noise", "beta_schedule": "cosine"}
        net, diffusion = UNet().eval(), GaussianDiffusion()
        nn.init.normal_(net.out[2].weight, std=0.01)
    twin = diffusers_twin(net, recipe).to(device)
    shape = (args.batch_size, recipe["image_channel"], recipe["image_size"], recipe["image_size"])
    spec = SampleSpec("DDIM", args.steps, 0.0)
    prediction = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}[recipe["objective"]]
    scheduler = DDIMScheduler(
        trained_betas=diffusion.betas.numpy(), prediction_type=prediction, timestep_spacing="trailing"
    )
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
