"""Draws how samples develop, as a strip: time runs to the right, and each sample has two rows. The upper one shows the
noisy image x_t, the lower one the x_start that the network predicts from it.

    python benchmarks/development.py --model_path checkpoints/flower102.safetensors --labels 54 49 --guidance 1.5

Most of what one sees is decided early: --timesteps are therefore closest where the noise is strongest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from diffusion import sample_progressive
from files.errors import ConfigError
from runs.recipe import parse_spec
from runs.run import load_run
from utils.command_line import ArgumentParser, number, run
from utils.pictures import grid, save_table


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model_path", type=Path, default="checkpoints/flower102.safetensors")
    parser.add_argument("--sample_info", default="UniPC_20_0p0", metavar="METHOD_STEPS_ETA")
    parser.add_argument("--timesteps", type=int, nargs="+", default=[999, 949, 899, 849, 799, 699, 499, 199])
    parser.add_argument("--sample_num", type=number(1), help="default: one for each label, or 3")
    parser.add_argument("--labels", nargs="+", help="classes, which the samples have in turn")
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=number(0), default=0)
    parser.add_argument("--save_dir", type=Path, default="results")
    args = parser.parse_args()
    trained = load_run(args.model_path)
    spec = parse_spec(args.sample_info, trained.recipe["timestep_num"], "--sample_info")
    indices = range(args.sample_num or len(args.labels or range(3)))
    x, noise = trained.noise(indices, args.seed)
    visited = spec.timesteps(trained.recipe["timestep_num"])
    if wrong := set(args.timesteps) - set(visited):
        raise ConfigError(f"--timesteps {min(wrong)}: {spec} visits {visited}")
    try:
        network = trained.labelled(indices, args.labels, args.guidance)
    except ValueError as error:
        raise ConfigError(f"--labels and --guidance: {error}") from error
    columns = {}  # {label: (x_t, the x_start predicted from it)}
    for frame in sample_progressive(trained.diffusion, network, x, spec, noise):
        if frame.t in args.timesteps:
            columns[f"t = {frame.t}"] = x, frame.pred_x_start
        x = frame.sample
    columns["result"] = x, x
    rows = [[grid(pair[part][i : i + 1], 1) for pair in columns.values()] for i in indices for part in (0, 1)]
    args.save_dir.mkdir(parents=True, exist_ok=True)
    file = args.save_dir / f"{args.model_path.stem}_development.png"
    print(save_table(rows, ["x_t", "predicted"] * len(indices), list(columns), file))


if __name__ == "__main__":
    run(main)
