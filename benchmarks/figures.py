"""Redraws the README's pictures from the shipped weights:   make figures

Interpolations take real pictures, from where config.yaml or --data says; where they are not, those pictures stay as
they are, and it is said.
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
           for n in (5, 10, 20, 50, 100, 1000)]  # fmt: skip
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


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), help="these weights' pictures")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=PATH", help="where real pictures are: mnist=…")
    args = parser.parse_args()
    data = dict(text.split("=", 1) for text in args.data)
    for name in args.only:
        for picture, asked in FIGURES[name].items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "test_solver.py", "--model_path", f"checkpoints/{name}.safetensors"]
                command += [*asked.split(), "--save_dir", folder]
                command += ["--data_path", data[name]] if name in data and "interpolate" in asked else []
                if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
                    print(f"images/{name}_{picture}.png stays as it is", file=sys.stderr)
                    continue
                for what in ("final", "progress") if picture == "final" else (picture,):
                    file = ROOT / "images" / f"{name}_{what}.png"
                    shutil.copy(next(Path(folder).glob(f"*_{what}.png")), file)
                    print(file.relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main()
