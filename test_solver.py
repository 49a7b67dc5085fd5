"""Samples from a trained checkpoint:   python test_solver.py --model_path train_results/digits/digits.pt …

random_gen draws pictures and shows how they develop from noise; compare draws a table over samplers and steps;
interpolate goes from one picture to another; inpaint fills a hole in pictures, and edit changes them; evaluate measures
how close the samples are to real pictures.
"""

import utils.interruptible  # noqa: F401 - first, so that Ctrl-C ends quietly while the others load

# isort: split
import time
from argparse import Namespace
from datetime import datetime
from pathlib import Path

import torch

from diffusion import SAMPLERS, SampleSpec, SpecError
from evaluation.distances import GROUPS
from files.atomic import clear_parts, own_stem
from files.errors import ConfigError
from runs.published import add_recipe_flags, recipe_flags
from runs.recipe import parse_spec
from runs.run import checkpoint_of, load_run
from test_modes import compare, edit, evaluate, inpaint, interpolate, random_gen
from test_modes.flags import FLAGS, labels_and_guidance
from test_modes.job import Job
from utils.command_line import ArgumentParser, number, run
from utils.device import PRECISIONS, one_thread_if_faster, pick_device, rank_and_world, sampling_precision

MODES = {"random_gen": random_gen, "compare": compare, "interpolate": interpolate, "inpaint": inpaint, "edit": edit}
MODES["evaluate"] = evaluate


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model_path", required=True, type=checkpoint_of, metavar="P", help="a checkpoint, its folder or .safetensors")
    add("--test_mode", required=True, choices=MODES)
    add("--sample_info", nargs="+", metavar="DDIM_50_0p0", help="samplers: METHOD_STEPS_ETA, one or several")
    add("--sample_num", type=number(1, 10**7), metavar="N", help="how many; for each mode see docs/sampling.md")
    add("--batch_size", type=number(1), default=100, metavar="B", help="samples at a time; not used by interpolate")
    add("--seed", type=number(0, 2**63 - 1), default=0, metavar="S", help="sample i depends only on it and on i")
    add("--save_dir", type=Path, default=Path("results"), metavar="D", help="where the pictures go (default: results)")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default), or of the last step")
    add("--device", metavar="cuda:0|mps|cpu", help="default: a GPU if there is one")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: half where it is fast and safe")
    add("--compile", action="store_true", help="compile the network, with CUDA graphs")
    add("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="for --data_name")
    for flag, (modes, meaning, keywords) in FLAGS.items():
        add(f"--{flag}", help=f"{modes}: {meaning}", default=None, **keywords)
    add_recipe_flags(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check_arguments(args)
    device = pick_device(args.device)
    trained = load_run(args.model_path, args.weights, **recipe_flags(args))
    precision = sampling_precision(args.precision, device, trained.recipe["objective"])
    specs, mode = samplers(args, trained.recipe["timestep_num"]), MODES[args.test_mode]
    labelled = labels_and_guidance(args, trained.recipe)
    if args.sample_dir and len(specs) * len(labelled["guidance"]) > 1:
        raise ConfigError("--sample_dir takes the samples of one --sample_info and one --guidance")
    args.save_dir.mkdir(parents=True, exist_ok=True)
    clear_parts(args.save_dir)
    trained.to(device, precision, args.compile)
    if device.type == "cpu" and not args.samples:
        x_T, _ = trained.noise(range(min(8, args.batch_size)), args.seed)
        t = torch.zeros(len(x_T), dtype=torch.int64)
        one_thread_if_faster(torch.inference_mode()(lambda: trained.network(x_T, t)))
    began, rank = time.monotonic(), rank_and_world()[0]
    stem = f"{datetime.now():%Y%m%d%H%M%S}_seed{args.seed}" + f"_rank{rank}" * (rank > 0)
    with own_stem(args.save_dir, stem) as stem:
        try:
            files = mode.run(Job(args, trained, specs, precision, stem, **labelled))
        except SpecError as error:
            raise ConfigError(f"--sample_info: {error}") from error
    print(*files, f"{time.monotonic() - began:.1f} s on {device} in {precision}", sep="\n")


def check_arguments(args: Namespace) -> None:
    """Refuses flags that the mode does not use, or that do not go together, before anything is loaded."""
    for flag, (modes, _, _) in sorted(FLAGS.items()):
        if args.test_mode not in modes.split(", ") and getattr(args, flag) is not None:
            raise ConfigError(f"--{flag} is for --test_mode {modes}, not for {args.test_mode}")
    unused = ("labels", "guidance", "classes", "sample_dir", "features", "statistics")
    if args.bits and (given := [f"--{flag}" for flag in unused if getattr(args, flag)]):
        raise ConfigError(f"--bits has no samples, and uses the network without labels: leave out {', '.join(given)}")
    drawing = (args.sample_dir, args.sample_info, args.labels, args.guidance, args.classes, args.bits)
    if args.samples and any(drawing):
        raise ConfigError("--samples are drawn already: leave out all flags that say how to draw them, and --bits")
    if args.samples and not args.samples.is_dir():
        raise ConfigError(f"--samples {args.samples} is not a folder: give the one with the pictures to measure")
    least = 2 if args.bits else GROUPS
    if args.test_mode == "evaluate" and args.sample_num is not None and args.sample_num < least:
        raise ConfigError(f"--sample_num {args.sample_num}: evaluate needs at least {least}, to estimate its error")
    if args.test_mode in ("random_gen", "compare") and not args.sample_dir and (args.sample_num or 0) > 10_000:
        remedy = ": --sample_dir takes that many" * (args.test_mode == "random_gen")
        raise ConfigError(f"--sample_num {args.sample_num:,} is too much for a picture{remedy}")
    if rank_and_world()[1] > 1 and not args.sample_dir:
        raise ConfigError("several processes can only share the work of a --sample_dir")


def samplers(args: Namespace, T: int) -> list[SampleSpec]:
    """The samplers of --sample_info without duplicates, or the mode's default, for T training timesteps."""
    methods = [method for method in SAMPLERS if method not in ("NaiveDDPM", "DDPMlarge")]
    ddim = [f"DDIM_{min(50, T)}_0p0"]
    default = {
        "compare": [f"{method}_{min(n, T)}_0p0" for method in methods for n in (10, 50)],
        "interpolate": ddim if "ddim" in (args.interp_mode or []) else [f"DDPM_{T}_0p0"],  # only DDIM can be inverted
        "inpaint": [f"DDPM_{min(50, T)}_0p0"],
        "evaluate": [f"DDPM_{T}_0p0"] if args.bits else ddim,
    }
    texts = args.sample_info or default.get(args.test_mode, ddim)
    return list(dict.fromkeys(parse_spec(text, T, "--sample_info") for text in texts))


if __name__ == "__main__":
    run(main)
