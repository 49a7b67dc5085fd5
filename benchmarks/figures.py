"""Redraws the README's pictures, from the shipped weights and, for the ablations, by training:   make figures

Interpolations and trainings take real pictures, from where config.yaml or --data says; where those are not, the
README's pictures stay as they are, and it is said.
"""

import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
BETWEEN = "--test_mode interpolate --sample_info"
METHODS = [f"{method}_{n}_{eta}" for method, eta in
           (("NaiveDDPM", "0p0"), ("DDPM", "0p0"), ("DDIM", "1p0"), ("DDIM", "0p0"), ("DPMpp", "0p0"))
           for n in (10, 50, 100, 200, 500, 800, 1000)]  # fmt: skip
COMPARE = f"--test_mode compare --sample_info {' '.join(METHODS)}"
SMOOTHNESS = f"{BETWEEN} DDIM_50_0p0 --interp_mode lerp slerp ddim redrawn"
FIGURES = {  # weights: {picture: what test_solver.py is asked for}
    "digits": {
        "final": "--test_mode random_gen --sample_info DDIM_50_0p0",
        "interpolate": f"{BETWEEN} DDPM_1000_0p0",
        "compare": COMPARE,
        "smoothness": SMOOTHNESS,
    },
    "mnist": {
        "final": "--test_mode random_gen --sample_info DDIM_50_0p0",
        "interpolate": f"{BETWEEN} DDPM_250_0p0",
    },
    "fashion_mnist": {
        "final": "--test_mode random_gen --sample_info DDIM_50_0p0",
        "interpolate": f"{BETWEEN} DDPM_250_0p0",
        "compare": COMPARE,
        "smoothness": SMOOTHNESS,
    },
    "emoji": {
        "final": "--test_mode random_gen --sample_info DDIM_50_0p0 --sample_num 64",
        "interpolate": f"{BETWEEN} DDPM_250_0p0",
    },
}
ABLATIONS = {"digits": ("loss_and_betas", "tricks"), "emoji": ("loss_and_betas",)}


def redraw(command: list[str], folder: str, pictures: dict[str, str]) -> bool:
    """Runs a command of ours that leaves pictures in a folder, and takes them: {README's picture: what it is there}."""
    command = [sys.executable, *command, "--save_dir", folder]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        print(f"not redrawn: {', '.join(pictures)}", file=sys.stderr)
        return False
    for picture, pattern in pictures.items():
        shutil.copy(next(Path(folder).glob(pattern)), ROOT / "images" / picture)
        print(f"images/{picture}", flush=True)
    return True


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), help="these weights' pictures")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH", help="where real pictures are: mnist=…")
    args = parser.parse_args()
    data, done = dict(text.partition("=")[::2] for text in args.data), []
    for name in args.only:
        where = ["--data_path", data[name]] if name in data else []
        for picture, asked in FIGURES[name].items():
            with tempfile.TemporaryDirectory() as folder:
                command = ["test_solver.py", "--model_path", f"checkpoints/{name}.safetensors", *asked.split()]
                whats = ("final", "progress") if picture == "final" else (picture,)
                pictures = {f"{name}_{what}.png": f"*_{what}.png" for what in whats}
                done.append(redraw(command + (where if "interpolate" in asked else []), folder, pictures))
        with tempfile.TemporaryDirectory() as folder:  # its networks serve all tables
            for table in ABLATIONS.get(name, ()):
                command = ["benchmarks/ablations.py", "--data_name", name.title(), *where, "--only", table]
                command += ["--seeds", "0", "--sample_num", "16"]
                done.append(redraw(command, folder, {f"{name}_{table}.png": f"{name}_{table}.png"}))
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
