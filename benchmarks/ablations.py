"""Shows what the loss, the betas, P2 weights, EMA and clipping change, with networks that differ in one thing.

    python benchmarks/ablations.py --data_name Digits                                # 40 minutes on one core
    python benchmarks/ablations.py --data_name Emoji --data_path PATH --only loss_and_betas

The networks predict noise, as in the first papers, unless --set says otherwise, and are small enough for a CPU: see
SETTINGS. Networks of one seed have the same initial weights, data order, timesteps and noise. All cells are sampled
from the same noise, so that pictures in the same place of two grids correspond.

Each table has a row per cell, with means ± standard deviations over the seeds. The samples of the first seed are saved
as a picture. Run the same command again to resume after an interruption.
"""

import statistics
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import recipe_with, train_quietly

from datasets import to_uint8
from evaluation.distances import GROUPS
from evaluation.features import FEATURES, extractor_for
from evaluation.numbers import Evaluation
from evaluation.real_pictures import real_pictures
from runs.recipe import parse_spec
from runs.run import load_run
from utils.command_line import ArgumentParser, number, run
from utils.device import pick_device
from utils.pictures import grid, grid_columns, save_table

AT_16 = {"image_size": 16, "channel_mult": "1,2,2", "model_channels": 32, "num_res_blocks": 1}
AT_16 |= {"learning_rate": 5e-4, "ema_decay": 0.999, "max_steps": 1500}
SETTINGS = {"Digits": {"max_steps": 1000}, "Fashion_Mnist": AT_16, "Emoji": AT_16}  # over config.yaml
LAPTOP = {"max_steps": 1000, "batch_size": 32, "num_classes": "null"}
SETTINGS |= {"Cifar10_laptop": LAPTOP, "Flower102_laptop": LAPTOP, "StyleGAN_Face_laptop": {"max_steps": 1000}}
PLAIN = {"objective": "pred_noise", "loss_type": "l1", "beta_schedule": "cosine", "loss_weight": "none"}
PLAIN |= {"timestep_density": "uniform"}
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
SHOWN = {"frechet": 3, "kernel": 4, "brightness": 4, "fine_detail": 4, "evenness": 4}  # of a report; their decimals


def row(title: str, reports: list[dict]) -> str:
    """A table row: mean and standard deviation of each number over the reports, and a dash for missing ones."""
    cells, flat = [title], [report | report["look"] | report.get("classes", {}) for report in reports]
    for key, decimals in SHOWN.items():
        values = [report[key] for report in flat if key in report]
        spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{decimals}f}{spread}" if values else "–")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_name", default="Digits", choices=SETTINGS)
    parser.add_argument("--data_path", metavar="P", help="where the data are (default: as in config.yaml)")
    parser.add_argument("--only", choices=TABLES, help="a single table")
    parser.add_argument("--seeds", nargs="+", type=number(0, 2**63 - 1), default=[0, 1, 2], metavar="S")
    parser.add_argument("--sample_info", default="DDPM_100_0p0", metavar="METHOD_STEPS_ETA", help="the sampler")
    parser.add_argument("--features", default="auto", choices=FEATURES, help="of the distances")
    parser.add_argument("--sample_num", type=number(GROUPS), default=1000, metavar="N", help="samples of each network")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override any key, for every network")
    parser.add_argument("--save_dir", default="train_results/ablations", metavar="D", help="for networks and pictures")
    args = parser.parse_args()

    def recipe_of(network: str, seed: int) -> dict:
        settings = SETTINGS[args.data_name] | NETWORKS[network] | {"seed": seed}
        return recipe_with(f"{args.data_name.lower()}_{network}_{seed}", settings, args)

    @cache  # both tables use some networks
    def checkpoint_of(network: str, seed: int) -> Path:
        return train_quietly(recipe_of(network, seed))

    device, recipe = pick_device(), recipe_of("L1_cosine", 0)  # the same data in every recipe
    spec = parse_spec(args.sample_info, recipe["timestep_num"], "--sample_info")
    real = real_pictures(recipe, recipe["split"], recipe["split"])
    extractor = extractor_for(recipe["dataset"], recipe["image_channel"], device, args.features)
    evaluation = Evaluation(real, extractor, args.sample_num)
    for table in [args.only] if args.only else TABLES:
        print(f"| {args.data_name}, {spec} | {' | '.join(SHOWN).replace('_', ' ')} |")
        print(f"|{' --- |' * (1 + len(SHOWN))}")
        grids = []
        for cell, (network, weights, clip) in TABLES[table].items():
            reports = []
            for seed in args.seeds:
                trained = load_run(checkpoint_of(network, seed), weights).to(device)
                trained.diffusion.clip_denoised = clip
                samples = to_uint8(trained.sample(args.sample_num, spec))
                reports.append(evaluation(samples)[0])
                if seed == args.seeds[0]:
                    grids.append(grid(samples[:16], grid_columns(16)))
            print(row(cell, reports), flush=True)
        floor = reports[0].get("floor", {})
        title = f"real pictures (distance of {floor['n']:,} others)" if floor else "real pictures"
        print(row(title, [evaluation.real | floor]), "", sep="\n")
        file = Path(args.save_dir, f"{args.data_name.lower()}_{table}.png")
        print(save_table([grids], [""], list(TABLES[table]), file), flush=True)


if __name__ == "__main__":
    run(main)
