"""Fills the middle quarter of held-out pictures in several ways, and measures what is in the hole.

RePaint is compared with filling from the training picture that is nearest outside the hole, and with noise replacement
alone, in as many steps and in as many network calls. Distances are those to the pictures themselves.
"""

import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from datasets import normalize, to_uint8
from diffusion import SampleSpec, repaint
from diffusion.inpainting import way
from evaluation.distances import Reference, frechet
from evaluation.features import extractor_for
from evaluation.neighbours import nearest
from evaluation.real_pictures import real_pictures
from files.errors import ConfigError
from runs.recipe import parse_spec
from runs.run import Run, in_batches, load_run
from utils.command_line import ArgumentParser, number, run
from utils.device import pick_device
from utils.pictures import grid, save_table

SHOWN, ZOOM = 6, 3  # pictures in the table, and pixels for each of theirs
RESAMPLINGS, STEPS = 5, 50


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", type=Path, default=Path("checkpoints/fashion_mnist.safetensors"))
    parser.add_argument("--data_path", metavar="P", help="where the pictures are (default: as in the recipe)")
    parser.add_argument("--sample_num", type=number(10), default=100, help="pictures, the first of the test split")
    parser.add_argument("--seed", type=number(0), default=0)
    parser.add_argument("--save_dir", type=Path, default=Path("results"), help="where the picture goes")
    args = parser.parse_args()
    trained = load_run(args.model_path)
    recipe = trained.to(pick_device()).recipe
    size, channels = recipe["image_size"], recipe["image_channel"]
    spec = parse_spec(f"DDPM_{STEPS}_0p0", recipe["timestep_num"], str(args.model_path))
    path = way(spec.timesteps(recipe["timestep_num"]), None, RESAMPLINGS)
    calls = sum(after < t for t, after in pairwise(path))
    parse_spec(f"DDPM_{calls}_0p0", recipe["timestep_num"], str(args.model_path))
    extractor = extractor_for(recipe["dataset"], channels, trained.device)
    if not extractor or not extractor.classes:
        raise ConfigError(f"{args.model_path}: {recipe['dataset']} has no shipped classifier to judge by")
    real = real_pictures(recipe | {"data_path": args.data_path or recipe["data_path"]}, "train", "train")
    if real.held_out is None:
        raise ConfigError(f"{args.model_path}: {recipe['dataset']} has no held-out pictures to fill")
    originals, hole = real.held_out[: args.sample_num], torch.zeros(size, size, dtype=torch.bool)
    hole[size // 4 : size // 4 * 3, size // 4 : size // 4 * 3] = True
    _, closest, _ = nearest(originals.masked_fill(hole, 0), real.training.masked_fill(hole, 0))
    filled = {"nearest training picture": torch.where(hole, real.training[closest], originals)}
    settings = {
        f"replacement alone, {STEPS} steps": (STEPS, 1),
        f"replacement alone, {calls} steps": (calls, 1),
        f"RePaint, {STEPS} steps, {calls} calls": (STEPS, RESAMPLINGS),
    }
    for name, (steps, resamplings) in settings.items():
        began = time.monotonic()
        filled[name] = fill(trained, originals, hole, steps, resamplings, args.seed)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    reference = extractor.features(originals)
    real_features = Reference(reference)
    for name, pictures in filled.items():
        features = extractor.features(pictures)
        squares = (pictures.double() - originals.double()).div(255).square()[:, :, hole].mean((1, 2))
        apart, (distance, error) = (features - reference).square().sum(1), frechet(features, real_features)
        print(f"{name}: mean squared error in the hole {mean_and_error(squares, 4)}")
        same = (extractor.classes(features) == extractor.classes(reference)).double().mean()
        print(f"    squared distance in features {mean_and_error(apart, 1)}, Fréchet {distance:.2f} ± {error:.2f}")
        print(f"    taken for the same class {same:.0%}")
    rows = {"picture": originals, "with its hole": originals.masked_fill(hole, 128)} | filled
    shown = [x[:SHOWN].repeat_interleave(ZOOM, 2).repeat_interleave(ZOOM, 3) for x in rows.values()]
    cells = [[grid(x, SHOWN)] for x in shown]
    args.save_dir.mkdir(parents=True, exist_ok=True)
    print(save_table(cells, list(rows), [""], args.save_dir / f"{args.model_path.stem}_inpaint.png"))


def mean_and_error(values: Tensor, digits: int) -> str:
    return f"{values.mean():.{digits}f} ± {values.std() / len(values) ** 0.5:.{digits}f}"


def fill(trained: Run, pictures: Tensor, hole: Tensor, steps: int, resamplings: int, seed: int) -> Tensor:
    """uint8 pictures (N, C, S, S) with the hole filled by DDPM. Picture i has the noise of sample i."""
    parts, spec = [], SampleSpec("DDPM", steps, 0.0)
    for indices in in_batches(len(pictures), 25):
        x_start = normalize(pictures[indices[0] : indices[-1] + 1]).to(trained.device)
        x_T, noise = trained.noise(indices, seed)
        given = trained.diffusion, trained.network, x_T, x_start, hole.to(trained.device), spec, noise
        *_, last = repaint(*given, resamplings=resamplings)
        parts.append(to_uint8(last.sample).cpu())
    return torch.cat(parts)


if __name__ == "__main__":
    run(main)
