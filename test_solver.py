"""Samples from a trained checkpoint:   python test_solver.py --model_path train_results/digits/digits.pt

random_gen writes the final pictures and how they came out of noise; compare one table over methods and steps;
interpolate goes from one picture to another; evaluate measures how near the samples are to real pictures.
"""

import json
import time
from datetime import datetime
from pathlib import Path

import torch
from tqdm import tqdm

from datasets import SPLITS, normalize, to_uint8
from diffusion import INTERP_MODES, SampleNoise, SampleSpec, interpolate
from utils.checkpoint import load_run
from utils.classifier import extractor_for
from utils.compare import save_comparison
from utils.config import load_recipe
from utils.device import pick_device, ready_to_sample, sampling_precision
from utils.errors import ArgumentParser, ConfigError, number, run
from utils.evaluation import GROUPS, Evaluation, real_pictures, summary
from utils.images import grid, grid_columns, save_grid
from utils.pairs import choose_pairs
from utils.processes import rank_and_world
from utils.progress import Progress
from utils.recipe import parse_spec
from utils.sample_dir import SampleDir, identity_of
from utils.smoothness import jump, save_smoothness, step_sizes


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model_path", required=True, type=Path, metavar="P", help="a checkpoint or .safetensors")
    add("--test_mode", required=True, choices=MODES)
    add("--sample_info", nargs="+", metavar="DDIM_50_0p0", help="METHOD_STEPS_ETA, one or several")
    add("--sample_num", type=number(1), metavar="N", help="pictures (a cell's, to compare: 16); the pairs are sqrt(N)")
    add("--batch_size", type=number(1), default=100, metavar="B", help="samples at a time; not for interpolate")
    add("--seed", type=number(0, 2**63 - 1), default=0, metavar="S", help="with i alone it decides sample i's noise")
    add("--save_dir", type=Path, default=Path("results"), metavar="D", help="where the pictures go")
    add("--weights", choices=("ema", "raw"), default="ema", help="the averaged weights or the last")
    add("--device", metavar="cuda:0|cpu", help="unless given, the CUDA device if there is one")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where it is fast and safe")
    add("--compile", action="store_true", help="compile the network, with CUDA graphs")
    random = parser.add_argument_group("random_gen")
    random.add_argument("--sample_dir", type=Path, metavar="D", help="also write each sample there, and go on there")
    random.add_argument("--animate", choices=("gif", "webp"), help="also write how they came out of noise as a film")
    add = parser.add_argument_group("interpolate").add_argument
    add("--interp_mode", nargs="+", choices=INTERP_MODES, help="one or several; unless given, lerp")
    add("--diffusion_step", type=number(1), metavar="N", help="timesteps of noise to mix at; unless given, half of all")
    add("--lambda_num", type=number(2), metavar="N", help="mixtures from lambda 0 to 1; unless given, 11")
    add("--image_indices", type=int, nargs="+", metavar="I", help="pairs of pictures by number: I J, or I J K L …")
    add("--image_files", type=Path, nargs=2, metavar="FILE", help="a pair of picture files")
    add = parser.add_argument_group("interpolate and evaluate: real pictures").add_argument
    add("--data_name", metavar="NAME", help="of this block's data, not the training's")
    add("--data_path", metavar="P", help="where the data are")
    add("--split", choices=SPLITS, help="which of the data; unless given, the split trained on")
    add("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="for --data_name")
    checked = parser.add_argument_group("for a checkpoint without a recipe; any other must agree, where given")
    checked.add_argument("--image_size", type=int)
    checked.add_argument("--image_channel", type=int)
    checked.add_argument("--training_timestep_num", type=int)
    checked.add_argument("--beta_schedule")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    check_arguments(args)
    device = pick_device(args.device)
    given = {"image_size": args.image_size, "image_channel": args.image_channel}
    given |= {"timestep_num": args.training_timestep_num, "beta_schedule": args.beta_schedule}
    trained = load_run(args.model_path, args.weights, **given)
    recipe = trained.recipe
    args.precision = sampling_precision(args.precision, device, recipe["objective"])
    T, mode = recipe["timestep_num"], args.test_mode
    ddim, steps = f"DDIM_{min(50, T)}_0p0", (min(10, T), min(50, T))
    default = {
        "random_gen": [ddim],
        "compare": [f"{method}_{n}_0p0" for method in ("DDPM", "DDIM", "DPMpp") for n in steps],
        "evaluate": [ddim],
        "interpolate": [ddim if "ddim" in (args.interp_mode or []) else f"DDPM_{T}_0p0"],  # DDIM can be inverted
    }[mode]
    specs = list(dict.fromkeys(parse_spec(text, T, "--sample_info") for text in args.sample_info or default))
    if args.sample_dir and len(specs) > 1:
        raise ConfigError("--sample_dir takes the samples of one --sample_info")
    if rank_and_world()[1] > 1 and not args.sample_dir:
        raise ConfigError("several processes share the work of a --sample_dir only")
    args.save_dir.mkdir(parents=True, exist_ok=True)
    network = ready_to_sample(trained.model, device, args.precision, args.compile)
    trained.diffusion.to(device)
    began = time.monotonic()
    files = MODES[mode](args, trained, network, specs, device)
    print(*files, f"{time.monotonic() - began:.1f} s on {device} in {args.precision}", sep="\n")


def check_arguments(args) -> None:
    """Refuses a flag that the mode has no use for, before anything is loaded."""
    only = {
        ("random_gen",): ("sample_dir", "animate"),
        ("interpolate", "evaluate"): ("data_name", "data_path", "split"),
    }
    only[("interpolate",)] = ("interp_mode", "diffusion_step", "lambda_num", "image_indices", "image_files")
    for modes, flags in only.items():
        for flag in flags:
            if args.test_mode not in modes and getattr(args, flag) is not None:
                of = " and ".join(modes)
                raise ConfigError(f"--{flag} is for --test_mode {of}, and {args.test_mode} has no use for it")
    if args.test_mode == "evaluate" and args.sample_num is not None and args.sample_num < GROUPS:
        raise ConfigError(f"--sample_num {args.sample_num}: evaluate takes {GROUPS} at least, to estimate its error")


def picture_path(args, what: str) -> Path:
    """<save_dir>/<timestamp>_<model>_<what>.png"""
    return args.save_dir / f"{datetime.now():%Y%m%d%H%M%S}_{args.model_path.stem}_{what}.png"


def in_batches(count: int, batch_size: int) -> list[range]:
    """The numbers of `count` samples, cut into batches."""
    return [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]


def start(recipe: dict, seed: int, indices: range, device: torch.device) -> tuple[torch.Tensor, SampleNoise]:
    """x_T of these samples, (B, C, H, W), and their noise along the way."""
    noise = SampleNoise(seed, indices)
    shape = (len(indices), recipe["image_channel"], recipe["image_size"], recipe["image_size"])
    return noise.draw(shape, torch.float32, device), noise


def random_gen(args, trained, network, specs, device) -> list[Path]:
    """The samples of each sampler in a grid, and the way of the first of them out of noise."""
    files = []
    for spec in specs:
        batches = in_batches(args.sample_num or trained.recipe["sample_num"], args.batch_size)
        final, progress_file = (picture_path(args, f"{spec}_{what}") for what in ("final", "progress"))
        if args.sample_dir:  # the pictures show its first batch; what it has already is not drawn again
            rank, world = rank_and_world()
            folder = SampleDir(args.sample_dir, identity_of(trained, spec, args.seed, args.precision), batches[-1].stop)
            batches = [batch for batch in batches[rank::world] if not all(map(folder.has, batch))]
            print(f"process {rank} of {world}: {sum(map(len, batches)):,} samples to draw into {args.sample_dir}")
        pixels = []
        with tqdm(total=len(batches) * spec.steps, desc=str(spec), unit="step", leave=False) as bar:
            for batch in batches:
                x, noise = start(trained.recipe, args.seed, batch, device)
                progress = Progress(spec.steps, grid_columns(len(batch)), bool(args.animate)) if batch[0] == 0 else None
                for done, frame in enumerate(trained.diffusion.sample_progressive(network, x, spec, noise)):
                    if progress:
                        progress.watch(done, x, frame.pred_x_start, f"t = {frame.t}")
                    x = frame.sample
                    bar.update()
                if progress:
                    progress.watch(spec.steps, x, x, "the end")
                    files += progress.save(progress_file, args.animate)
                drawn = to_uint8(x).cpu()
                if progress or not args.sample_dir:
                    pixels.append(drawn)
                if progress if args.sample_dir else batch == batches[-1]:
                    files.append(save_grid(torch.cat(pixels), final, grid_columns(sum(map(len, pixels)))))
                if args.sample_dir:
                    folder.save(batch, drawn)  # last: when a batch is there, its pictures are too
    return [*files, args.sample_dir] if args.sample_dir else files


def draw(args, trained, network, spec, device, count: int) -> tuple[torch.Tensor, float]:
    """uint8 (count, C, S, S) and the seconds it took."""
    parts, began = [], time.monotonic()
    for batch in tqdm(in_batches(count, args.batch_size), desc=str(spec), leave=False):
        x, noise = start(trained.recipe, args.seed, batch, device)
        parts.append(to_uint8(trained.diffusion.sample(network, x, spec, noise)).cpu())
    return torch.cat(parts), time.monotonic() - began


def compare(args, trained, network, specs, device) -> list[Path]:
    """One table of samples, methods down and steps across, all from the same noise; seconds per image below each."""
    count, cells = args.sample_num or 16, {}
    warm_up = SampleSpec("DDIM", min(3, trained.recipe["timestep_num"]), 0.0)  # first calls are no sampler's fault
    for i, spec in enumerate(tqdm([warm_up, *specs], desc="compare", leave=False)):
        pixels, seconds = draw(args, trained, network, spec, device, count)
        if i > 0:
            cells[spec] = grid(pixels, grid_columns(count)), seconds / count
    facts = {"images": count, "device": device, "precision": args.precision}
    return save_comparison(cells, picture_path(args, "compare"), **facts)


def interpolate_pairs(args, trained, network, specs, device) -> list[Path]:
    """A column a pair: the first picture, the mixtures from lambda 0 to 1, the second; and how evenly it goes."""
    T, L = trained.recipe["timestep_num"], args.lambda_num or 11
    depth, lambdas = args.diffusion_step or -(-T // 2), [i / (L - 1) for i in range(L)]
    if depth > T:
        raise ConfigError(f"--diffusion_step {depth}: {args.model_path} was trained with {T} timesteps")
    first, second = normalize(torch.from_numpy(choose_pairs(args, trained.recipe))).to(device)
    try:  # nothing is computed before the rows are asked for
        jobs = {
            (spec, mode): interpolate(trained.diffusion, network, first, second, spec, depth, lambdas, args.seed, mode)
            for spec in specs
            for mode in args.interp_mode or ["lerp"]
        }
    except ValueError as error:
        raise ConfigError(f"--interp_mode and --sample_info: {error}") from error
    files, curves = [], {spec: {} for spec in specs}
    for (spec, mode), mixtures in jobs.items():
        rows = list(tqdm(mixtures, total=L, desc=f"{mode} {spec}", leave=False))
        curves[spec][mode] = steps = step_sizes(rows)
        mse = torch.stack([rows[0] - first, rows[-1] - second]).div(2).square().mean().item()
        print(f"{mode} {spec}: largest step {jump(steps):.2f} times the mean; MSE of the ends {mse:.6f} (of 0 to 1)")
        what = f"{spec}_interpolate" if mode == "lerp" else f"{spec}_{mode}_interpolate"
        files.append(save_grid(torch.cat([first, *rows, second]), picture_path(args, what), len(first)))
    for spec in specs:
        files.append(save_smoothness(curves[spec], lambdas, picture_path(args, f"{spec}_smoothness")))
    return files


def evaluate_samples(args, trained, network, specs, device) -> list[Path]:
    """How near the samples are to real pictures, as numbers; and beside some of them their nearest real neighbours."""
    recipe, files = trained.recipe, []
    source = load_recipe(args.config, args.data_name) if args.data_name else recipe
    split, channels, count = args.split or source["split"], recipe["image_channel"], args.sample_num or 2000
    path = args.data_path or source["data_path"]
    real = real_pictures(source["dataset"], path, split, source["split"], recipe["image_size"], channels)
    evaluation = Evaluation(real, extractor_for(source["dataset"], channels, device), count)
    for spec in specs:
        samples, seconds = draw(args, trained, network, spec, device, count)
        report, apart, number = evaluation(samples)
        report = {
            "model": args.model_path.name, "weights": trained.weights, "step": trained.step, "sample_info": str(spec),
            "seed": args.seed, "precision": args.precision, "device": str(device), "seconds": round(seconds, 1),
            "data": source["data_name"], "split": split, **report,
        }  # fmt: skip
        print(summary(report))
        file = picture_path(args, f"{spec}_evaluate").with_suffix(".json")
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        first, closest = torch.arange(len(samples))[:10], apart.argsort()[:10]
        rows = [pictures for which in (first, closest) for pictures in (samples[which], real.training[number[which]])]
        files += [file, save_grid(torch.cat(rows), picture_path(args, f"{spec}_neighbours"), len(first))]
    return files


MODES = {"random_gen": random_gen, "compare": compare, "interpolate": interpolate_pairs, "evaluate": evaluate_samples}

if __name__ == "__main__":
    run(main)
