"""Which recipe gives the best samples for the same minutes of training? One table, with other toolkits as peers.

    python benchmarks/minutes.py --minutes 20 --arms small Fashion_Mnist_laptop diffusers denoising_diffusion_pytorch
    python benchmarks/minutes.py --minutes 20 --arms small "small batch_size=32" "small learning_rate=2e-3"

An arm is one text: a block of config.yaml or `small`, which is the block of --data_name with the settings SMALL, and
then any KEY=VALUE. Or it is one of PEERS: a network of about the size of `small` from another toolkit, trained with the
settings of that toolkit's own script except the network's size, in the precision and memory layout that are fastest
here. Of its recipe it obeys batch_size, learning_rate, model_channels (the width) and precision, as in "diffusers
model_channels=128 precision=fp32". All arms see the same pictures in the same order and are sampled from the
same noise by the same sampler, each with its own betas.

Minutes are minutes of training: loading, previews, sampling and evaluation do not count. Our arms train with
max_minutes, which becomes a number of steps before the first one, so that the learning rate can fall to 0 at the end;
the column minutes is what they took. Arms with labels have a row for each --guidance, and samples of the classes in the
proportions of the data. The Fréchet distance is in the features of the data's classifier, which knows the labels; the
kernel distance is in ImageNet's, which do not, and to held-out pictures (training pictures if none are held out). The
samples of each row are saved as a picture, and it is appended to <save_dir>/minutes.jsonl.
To use one core per arm, start the command once per core, with taskset and OMP_NUM_THREADS=1.
"""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from common import recipe_with, train_quietly
from peers import KEYS, PEERS, WIDTH, fastest

from datasets import Reading, load_images, to_uint8
from diffusion import GaussianDiffusion
from evaluation.distances import GROUPS, Reference, kernel
from evaluation.features import extractor_for, imagenet, kept
from evaluation.numbers import Evaluation
from evaluation.real_pictures import labels_like, real_pictures
from files.errors import ConfigError
from runs.labels import class_names, usual_guidance
from runs.recipe import parse_spec
from runs.run import Run, load_run
from training.batches import Batches
from training.log import read_log
from utils.command_line import ArgumentParser, number, run
from utils.device import pick_device, sampling_precision
from utils.pictures import grid_columns, save_grid

SMALL = {"model_channels": WIDTH, "num_res_blocks": 1, "objective": "pred_v", "loss_type": "l2"}
SMALL |= {"loss_weight": "min_snr", "learning_rate": 5e-4, "ema_decay": 0.999}  # the last two as in the block Emoji
HEAD = "arm, seed, minutes, images, images/s, parameters, guidance, Fréchet distance, kernel distance, "
HEAD += "least class, most, brightness"

Trained = tuple[Run, int, float]  # the network with its diffusion, images seen, seconds of training

# --- our recipes ------------------------------------------------------------------------------------------------------


def recipe_of(arm: str, seed: int, args: Namespace) -> dict:
    """The recipe of an arm such as "small batch_size=32". Its run is called by the arm, the minutes and the seed."""
    first, *overrides = arm.split() or [""]
    settings = {"seed": seed, "max_minutes": args.minutes, "save_every": 10**6, "sample_every": 10**6, "sample_num": 16}
    block = args.data_name if first == "small" or first in PEERS else first
    if block != first:
        theirs = {"model_channels": WIDTH, "num_classes": "null"}  # peers see no labels
        settings |= theirs | PEERS[first][1] if first in PEERS else SMALL
    if first in PEERS and (ignored := [text for text in overrides if text.partition("=")[0] not in KEYS]):
        raise ConfigError(f"{arm}: {first} does not know {ignored[0]}, only {', '.join(KEYS)}")
    given = Namespace(data_name=block, set=overrides, data_path=args.data_path, save_dir=args.save_dir)
    return recipe_with(f"{first}_{args.minutes:g}min_{seed}", settings, given)


def train_ours(recipe: dict, seconds: float) -> Trained:
    """Trains with the loop of train_solver.py, or resumes."""
    endless = {"max_steps": None, "train_epoch": 10**9}
    trained = load_run(train_quietly(recipe | endless | {"max_minutes": seconds / 60}))
    log = read_log(Path(recipe["save_dir"], recipe["pth_save_name"], "metrics.jsonl"))
    return trained, trained.step * recipe["batch_size"], log[-1]["seconds"]


# --- other toolkits ---------------------------------------------------------------------------------------------------


def train_peer(name: str, recipe: dict, seconds: float) -> Trained:
    """Trains until the seconds are over."""
    device = pick_device()
    data = (recipe["dataset"], recipe["data_path"], recipe["split"], recipe["image_size"], recipe["image_channel"])
    images = load_images(*data, reading=Reading.of(recipe))
    batches = Batches(images, recipe, GaussianDiffusion(1000), device)  # peers draw timesteps by themselves
    (step, averaged, diffusion), way = fastest(name, recipe, lambda: batches.steps(0, sys.maxsize), device)
    print(f"{name} computes in {way}", file=sys.stderr)
    began, steps = time.monotonic(), 0
    for batch in batches.steps(0, sys.maxsize):
        step(batch.x_start, min(1, (time.monotonic() - began) / seconds))
        steps += 1
        if time.monotonic() - began >= seconds:
            break
    taken = time.monotonic() - began
    return Run(averaged().eval(), diffusion, recipe, steps, "ema"), steps * recipe["batch_size"], taken


# --- the table --------------------------------------------------------------------------------------------------------


def numbers(trained: Trained, guidance: float | None, report: dict) -> list[str]:
    """The cells of an arm's row, from `minutes` on."""
    network, seen, seconds = trained
    parameters = sum(weight.numel() for weight in network.model.parameters())
    cells = [f"{seconds / 60:.1f}", f"{seen:,}", f"{seen / seconds:.0f}", f"{parameters:,}"]
    cells += ["–" if guidance is None else f"{guidance:g}"]
    cells += [f"{report['frechet']:.2f} ± {report['frechet_error']:.2f}" if "frechet" in report else "–"]
    cells += ["{:.3f} ± {:.3f}".format(*report["kernel_distance"])]
    shares = report["classes"]["shares"] if "classes" in report else []
    cells += [f"{most(shares):.1%}" if shares else "–" for most in (min, max)]
    return [*cells, f"{report['look']['brightness']:.4f}"]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, required=True, metavar="M", help="of training, for each arm and seed")
    parser.add_argument("--arms", nargs="+", required=True, metavar="ARM", help="a block, small or a peer; see above")
    parser.add_argument("--data_name", default="Fashion_Mnist", metavar="NAME", help="the pictures of peers and small")
    parser.add_argument("--data_path", metavar="P", help="where the data are (default: as in config.yaml)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S")
    parser.add_argument("--sample_info", default="DPMpp_20_0p0", metavar="METHOD_STEPS_ETA", help="the sampler")
    parser.add_argument("--guidance", nargs="+", type=number(0, 1000, float), metavar="W", help="default: the recipes'")
    parser.add_argument("--sample_num", type=number(GROUPS), default=2000, metavar="N", help="samples of each arm")
    parser.add_argument("--save_dir", default="train_results/minutes", metavar="D", help="for runs and pictures")
    args = parser.parse_args()

    recipes = {(arm, seed): recipe_of(arm, seed, args) for seed in args.seeds for arm in args.arms}
    for (arm, _), recipe in recipes.items():
        if recipe["num_classes"] and not recipe["label_dropout"] and set(args.guidance or [1]) != {1}:
            raise ConfigError(f"{arm}: with label_dropout=0 the network only knows --guidance 1")
    device, data, seconds = pick_device(), recipe_of("small", 0, args), 60 * args.minutes
    split, spec = data["split"], parse_spec(args.sample_info, data["timestep_num"], "--sample_info")
    real = real_pictures(data, split, split)
    evaluation = Evaluation(real, extractor_for(data["dataset"], data["image_channel"], device), args.sample_num)
    unlabelled = imagenet(device)
    unseen = Reference(kept(unlabelled, real.folders)(real.unseen))
    of_real = f"brightness {evaluation.real['look']['brightness']:.4f}"
    if evaluation.extractor and "frechet" in evaluation.floor:
        of_real += f", distance {evaluation.floor['frechet']:.2f} ± {evaluation.floor['frechet_error']:.2f}"
    print(f"{args.data_name}: {args.sample_num:,} samples of {spec}; real pictures: {of_real}\n")
    Path(args.save_dir).mkdir(parents=True, exist_ok=True)
    head = HEAD.split(", ")
    print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}", flush=True)
    for (arm, seed), recipe in recipes.items():
        name = arm.split()[0]
        trained = train_peer(name, recipe, seconds) if name in PEERS else train_ours(recipe, seconds)
        precision = sampling_precision(recipe["precision"], device, recipe["objective"])
        network = trained[0].to(device, "fp32" if name in PEERS else precision)
        names = class_names(network.recipe)
        labels = labels_like(data, split, names, args.sample_num) if names else None
        for guidance in (args.guidance or [usual_guidance(network.recipe)]) if names else [None]:
            samples = to_uint8(network.sample(args.sample_num, spec, labels=labels, guidance=guidance))
            report = evaluation(samples)[0] | {"kernel_distance": kernel(unlabelled.features(samples), unseen)}
            row = [arm, str(seed), *numbers(trained, guidance, report)]
            print(f"| {' | '.join(row)} |", flush=True)
            picture = recipe["pth_save_name"] + (f"_guidance{guidance}".removesuffix(".0") if names else "") + ".png"
            save_grid(samples[:64], Path(args.save_dir, picture), grid_columns(64))
            with open(Path(args.save_dir, "minutes.jsonl"), "a", encoding="utf-8") as lines:
                lines.write(json.dumps(dict(zip(head, row, strict=True))) + "\n")


if __name__ == "__main__":
    run(main)
