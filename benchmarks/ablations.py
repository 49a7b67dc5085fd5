"""What do the loss, the betas, P2 weighting, averaging and clipping do? Networks that differ in one thing, paired.

    python benchmarks/ablations.py --data_name Digits                                # 40 minutes on one core
    python benchmarks/ablations.py --data_name Emoji --data_path PATH --only loss_and_betas

The networks predict noise, as in the first papers, and are as small as two cores ask for: see SETTINGS. Those of one
seed have the same first weights, data order, timesteps and noise, and all cells the same sampling noise, so that
pictures in the same place of two grids correspond. Trains by train_solver.py, so that what is interrupted goes on.
Prints a line a cell, mean ± standard deviation over the seeds, and saves each table's pictures, of the first seed.
"""

import statistics
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from evaluation.features import extractor_for
from evaluation.numbers import Evaluation, real_pictures
from utils.pictures import grid, grid_columns, save_table

from datasets import to_uint8
from diffusion import SampleNoise, SampleSpec
from utils.checkpoint import load_run
from utils.device import pick_device, ready_to_sample, sampling_precision
from utils.command_line import run as run_script

ROOT = Path(__file__).parent.parent
AT_16 = {"image_size": "16", "channel_mult": "1,2,2", "model_channels": "32", "num_res_blocks": "1"}
AT_16 |= {"learning_rate": "5e-4", "ema_decay": "0.999", "max_steps": "1500"}
SETTINGS = {"Digits": {"max_steps": "1000"}, "Fashion_Mnist": AT_16, "Emoji": AT_16}  # over config.yaml
PLAIN = {"objective": "pred_noise", "loss_type": "l1", "beta_schedule": "cosine", "loss_weight": "none"}
NETWORKS = {
    "L1_cosine": PLAIN,
    "L2_cosine": PLAIN | {"loss_type": "l2"},
    "L1_linear": PLAIN | {"beta_schedule": "linear"},
    "L1_cosine_P2": PLAIN | {"loss_weight": "p2"},
}
TABLES = {  # table: {cell: (network, weights, clipping)}
    "loss_and_betas": {
        "L1, cosine": ("L1_cosine", "ema", True),
        "L2, cosine": ("L2_cosine", "ema", True),
        "L1, linear": ("L1_linear", "ema", True),
    },
    "tricks": {
        "EMA, P2, clipping": ("L1_cosine_P2", "ema", True),
        "no EMA": ("L1_cosine_P2", "raw", True),
        "no P2": ("L1_cosine", "ema", True),
        "no clipping": ("L1_cosine_P2", "ema", False),
    },
}
SHOWN = {"frechet": 3, "brightness": 4, "fine_detail": 4, "evenness": 4}  # figures, and their decimals


def train(args, network: str, seed: int) -> Path:
    name = f"{args.data_name.lower()}_{network}_{seed}"
    settings = SETTINGS[args.data_name] | NETWORKS[network] | {"seed": seed, "pth_save_name": name}
    settings |= dict(text.partition("=")[::2] for text in args.set)
    command = [sys.executable, ROOT / "train_solver.py", "--config", ROOT / "config.yaml", "--save_dir", args.save_dir]
    command += ["--data_name", args.data_name, *(["--data_path", args.data_path] if args.data_path else [])]
    command += ["--set", *(f"{key}={value}" for key, value in settings.items())]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        sys.exit(f"{name} was not trained")
    return Path(args.save_dir, name, f"{name}.pt")


def drawn(args, run, clip: bool, device: torch.device) -> torch.Tensor:
    """uint8 (sample_num, C, S, S), always from the same noise."""
    run.diffusion.to(device).clip_denoised = clip
    network = ready_to_sample(run.model, device, sampling_precision("auto", device, run.recipe["objective"]))
    parts, recipe = [], run.recipe
    for indices in torch.arange(args.sample_num).split(100):
        noise = SampleNoise(0, indices.tolist())
        shape = (len(indices), recipe["image_channel"], recipe["image_size"], recipe["image_size"])
        x = run.diffusion.sample(network, noise.draw(shape, torch.float32, device), args.sample_info, noise)
        parts.append(to_uint8(x).cpu())
    return torch.cat(parts)


def evaluation_for(recipe: dict, count: int, device: torch.device) -> Evaluation:
    size, channels, split = recipe["image_size"], recipe["image_channel"], recipe["split"]
    real = real_pictures(recipe["dataset"], recipe["data_path"], split, split, size, channels)
    return Evaluation(real, extractor_for(recipe["dataset"], channels, device), count)


def row(title: str, reports: list[dict]) -> str:
    """Mean and spread over the seeds of each figure that there is."""
    cells = [title]
    for key, decimals in SHOWN.items():
        values = [flat[key] for flat in (r | r["look"] | r.get("classes", {}) for r in reports) if key in flat]
        spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{decimals}f}{spread}" if values else "–")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", default="Digits", choices=SETTINGS)
    parser.add_argument("--data_path")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="for every network")
    parser.add_argument("--only", choices=TABLES, help="this table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sample_info", type=SampleSpec.parse, default=SampleSpec.parse("DDPM_100_0p0"))
    parser.add_argument("--sample_num", type=int, default=1000)
    parser.add_argument("--save_dir", default="train_results/ablations")
    args = parser.parse_args()
    device, evaluation = pick_device(), None
    for table in [args.only] if args.only else TABLES:
        print(f"| {args.data_name}, {args.sample_info} | {' | '.join(SHOWN).replace('_', ' ')} |")
        print("| --- |" + " --- |" * len(SHOWN))
        pictures = []
        for cell, (network, weights, clip) in TABLES[table].items():
            reports = []
            for seed in args.seeds:
                run = load_run(train(args, network, seed), weights)
                evaluation = evaluation or evaluation_for(run.recipe, args.sample_num, device)  # the same for all
                samples = drawn(args, run, clip, device)
                reports.append(evaluation(samples)[0])
                if seed == args.seeds[0]:
                    pictures.append(grid(samples[:16], grid_columns(16)))
            print(row(cell, reports), flush=True)
        floor = reports[0].get("floor", {})
        title = f"real pictures (distance of {floor['n']:,})" if floor else "real pictures"
        print(row(title, [evaluation.real | floor]), "", sep="\n")
        file = Path(args.save_dir, f"{args.data_name.lower()}_{table}.png")
        print(save_table([pictures], [""], list(TABLES[table]), file), flush=True)


if __name__ == "__main__":
    run_script(main)
