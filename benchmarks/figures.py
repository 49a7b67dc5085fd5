"""Redraws the pictures of the documents from the shipped weights, and the ablations by training:   make figures

Interpolations, edits and trainings need real pictures, at the place that config.yaml or --data names. A picture that
cannot be redrawn is left unchanged, with a message, and the exit code is 1.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parent.parent))
from files.errors import ConfigError
from utils.command_line import ArgumentParser, run

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "images"
ALL = [("NaiveDDPM", "0p0"), ("DDPM", "0p0"), ("DDIM", "1p0"), ("DDIM", "0p0"), ("DPMpp", "0p0"), ("UniPC", "0p0")]


def comparison(*steps: int) -> str:
    """The flags for a table of all samplers in so many steps."""
    specs = [f"{method}_{count}_{eta}" for method, eta in ALL for count in steps]
    return f"--test_mode compare --sample_info {' '.join(specs)}"


SAMPLES = "--test_mode random_gen --sample_info DDIM_50_0p0"
INTERPOLATION = "--test_mode interpolate --sample_info"
COMPARISON = comparison(5, 10, 20, 50, 100, 200, 500, 800, 1000)
COLOUR = "--test_mode random_gen --sample_info UniPC_20_0p0"
CALLS = "--test_mode compare --sample_info UniPC_1_0p0 UniPC_2_0p0 UniPC_4_0p0 UniPC_10_0p0 --sample_num 30"
FEW_CALLS = "--test_mode compare --sample_info DDPM_1_0p0 DDPM_2_0p0 DDPM_4_0p0 --sample_num 30"
SMOOTHNESS = f"{INTERPOLATION} DDIM_50_0p0 --interp_mode lerp slerp ddim redrawn"
FIGURES = {  # weights: {picture: flags of test_solver.py}
    "digits": {
        "final": SAMPLES,
        "interpolate": f"{INTERPOLATION} DDPM_1000_0p0",
        "compare": COMPARISON,
        "smoothness": SMOOTHNESS,
    },
    "mnist": {"final": SAMPLES, "interpolate": f"{INTERPOLATION} DDPM_250_0p0"},
    "fashion_mnist": {
        "final": SAMPLES,
        "interpolate": f"{INTERPOLATION} DDPM_250_0p0",
        "compare": f"{COMPARISON} --sample_num 9 --labels 0 3 9",
        "smoothness": SMOOTHNESS,
        "calls": CALLS,
    },
    "fashion_mnist_fast": {"calls": FEW_CALLS},
    "cifar10": {
        "calls": f"{CALLS} --guidance 2",
        "final": f"{COLOUR} --guidance 2",
        "guidance": "--test_mode compare --sample_info UniPC_10_0p0 --guidance 0 1 2 4 --sample_num 20"
        " --labels automobile bird frog horse ship",
        "interpolate": f"{INTERPOLATION} DDPM_250_0p0 --sample_num 49",
    },
    "cifar10_fast": {"calls": FEW_CALLS},
    "flower102": {
        "final": f"{COLOUR} --guidance 1.5 --sample_num 42",
        "interpolate": f"{INTERPOLATION} DDPM_250_0p0 --sample_num 64",
        "edit": "--test_mode edit --sample_info DDPM_50_0p0 --image_indices 20 1000 2000 3000 4000 5000",
        "compare": f"{comparison(5, 10, 20, 50, 200, 1000)} --sample_num 4 --labels 54 49",
        "film": f"{COLOUR} --guidance 1.5 --sample_num 9 --labels 54 49 56 --animate webp",
        "neighbours": "--test_mode evaluate --sample_info UniPC_10_0p0 --guidance 1.5 --sample_num 200",
    },
    "stylegan_face": {
        "final": f"{COLOUR} --sample_num 49",
        "progress": f"{COLOUR} --sample_num 4",
        "interpolate": f"{INTERPOLATION} DDPM_250_0p0 --sample_num 16",
        "compare": f"{COMPARISON} --sample_num 1",
    },
    "emoji": {},
}
PHOTOGRAPHS = {"cifar10", "cifar10_fast", "flower102", "stylegan_face"}  # are saved as JPEG
TABLE = "benchmarks/ablations.py --seeds 0 --sample_num 16 --only"
BENCHMARKS = {  # weights: {picture: the script that draws it, and its flags}
    "digits": {
        "loss_and_betas": f"{TABLE} loss_and_betas --data_name Digits",
        "tricks": f"{TABLE} tricks --data_name Digits",
    },
    "fashion_mnist": {"inpaint": "benchmarks/inpainting.py"},
    "flower102": {
        "development": "benchmarks/development.py --labels 54 49 --guidance 1.5",
        "loss_and_betas": f"{TABLE} loss_and_betas --data_name Flower102_laptop --sample_info DDPM_50_0p0",
    },
    "stylegan_face": {
        "tricks": f"{TABLE} tricks --data_name StyleGAN_Face_laptop --sample_info DDPM_50_0p0"
        " --set objective=pred_x0 loss_type=l2"
    },
    "emoji": {"loss_and_betas": f"{TABLE} loss_and_betas --data_name Emoji"},
}
NEED_PICTURES = ("interpolate", "edit", "evaluate", "ablations", "inpainting")  # words of commands


def enlarged(picture: Image.Image) -> Image.Image:
    """A picture under 500 pixels wide at twice its size, each pixel as four, so that one can see it in a document."""
    return ImageOps.scale(picture, 2, Image.Resampling.NEAREST) if picture.width < 500 else picture


def redraw(command: list[str], folder: Path, names: dict[str, str]) -> bool:
    """Runs a script of this project with --save_dir folder, and copies pictures from there to images/.

    names: {name in images/: pattern of the file in the folder}. Returns whether the script succeeded.
    """
    command = [sys.executable, *command, "--save_dir", str(folder)]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        print(f"not redrawn: {', '.join(names)}", file=sys.stderr)
        return False
    for name, pattern in names.items():
        picture = Image.open(next(folder.glob(pattern)))
        picture = enlarged(picture) if name.endswith(".png") or name.startswith("cifar10") else picture
        if "smoothness" in name:  # a plot, with few colours
            picture = picture.convert("RGB").quantize(256)
        frames = getattr(picture, "n_frames", 1)
        film = {"save_all": True, "duration": [100] * (frames - 1) + [2000]} if frames > 1 else {}
        picture.save(IMAGES / name, optimize=True, quality=78, subsampling=0, progressive=True, **film)
        print(f"images/{name}", flush=True)
    return True


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), help="pictures of these weights")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH", help="real pictures, such as mnist=PATH")
    args = parser.parse_args()
    data, done = dict(text.partition("=")[::2] for text in args.data), []
    if wrong := [name for name in data if name not in FIGURES or not data[name]]:
        raise ConfigError(f"--data {wrong[0]}: write NAME=PATH with a NAME of {', '.join(FIGURES)}")
    for weights in args.only:
        where = ["--data_path", data[weights]] if weights in data else []
        kind = "jpg" if weights in PHOTOGRAPHS else "png"
        with tempfile.TemporaryDirectory() as work:
            for picture, flags in FIGURES[weights].items():
                command = ["test_solver.py", "--model_path", f"checkpoints/{weights}.safetensors", *flags.split()]
                command += where if any(word in flags for word in NEED_PICTURES) else []
                both = picture == "final" and "progress" not in FIGURES[weights]
                made = ("final", "progress") if both else (picture,)
                names = {f"{weights}_{what}.{kind}": f"*_{what.replace('calls', 'compare')}*.png" for what in made}
                names = {f"{weights}_film.webp": "*.webp"} if picture == "film" else names
                done.append(redraw(command, Path(work, picture), names))
            for picture, command in BENCHMARKS.get(weights, {}).items():
                names = {f"{weights}_{picture}.{kind}": f"*_{picture}.png"}
                given = where if any(word in command for word in NEED_PICTURES) else []
                # one folder, because the tables share networks
                done.append(redraw([*command.split(), *given], Path(work, "benchmarks"), names))
    with tempfile.TemporaryDirectory() as work:
        done.append(
            redraw(["benchmarks/plots.py"], Path(work), {name: name for name in ("few_steps.png", "minutes.png")})
        )
    sys.exit(not all(done))


if __name__ == "__main__":
    run(main)
