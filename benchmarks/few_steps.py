"""Plots the distances of "Few steps" in docs/results.md against the calls of the network, both axes logarithmic.

    python benchmarks/few_steps.py

A band shows one standard error, and the grey line real images.
"""

import io
import re
import sys
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
from files.atomic import write_file
from utils.command_line import ArgumentParser, run

ROOT = Path(__file__).parent.parent
MEASURED = r"([\d.]+) ± ([\d.]+)"  # a distance and its standard error
PANELS = {  # title: how the sentence above its table gives the distance of real images
    "Fashion_Mnist, 1,000 samples": rf"of Fashion_Mnist \(real images: {MEASURED}\)",
    "Cifar10, 1,000 samples": rf"of Cifar10\s\({MEASURED}\)",
    "Digits, 297 samples": rf"real digits \(which have {MEASURED}\)",
}
COLOURS = {
    "NaiveDDPM": "tab:red",
    "DDPM": "tab:orange",
    "DDIM": "tab:green",
    "DPMpp": "tab:blue",
    "UniPC": "tab:purple",
    "Tuned": "black",
}

Points = dict[int, tuple[float, float]]  # {calls: (distance, its standard error)}


def few_steps(text: str) -> str:
    """The section of the document."""
    return re.search(r"^## Few steps\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]


def tables(section: str) -> tuple[dict[str, dict[str, Points]], dict[str, Points]]:
    """{data: {sampler: its points}} of the first table, and {sampler: its points} of the second one."""
    first, second, calls = {}, {}, []
    for line in re.findall(r"^\| (.*) \|$", section.replace("*", ""), re.MULTILINE):
        cells = line.split(" | ")
        if cells[0] in ("sampler", "steps"):
            calls = [int(number) for number in re.findall(r"\d+", line)]
        elif "---" not in line:
            values = [re.fullmatch(MEASURED, cell) for cell in cells[-len(calls) :]]
            points = {n: (float(v[1]), float(v[2])) for n, v in zip(calls, values, strict=True) if v}
            curves = second if len(cells) == 1 + len(calls) else first.setdefault(cells[1], {})
            curves[cells[0]] = points
    return first, second


def plot(panels: list[tuple[str, tuple[float, float], dict[str, Points]]], file: Path) -> None:
    """Writes a PNG. panels: (title, distance of real images and its error, {sampler: its points}) for each."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (title, (real, error), curves) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.axhspan(real - error, real + error, color="0.9")
        axes.axhline(real, color="0.5", label="real images")
        for sampler, points in curves.items():
            colour, calls = COLOURS[sampler.split()[0]], list(points)
            low, high = ([value + sign * error for value, error in points.values()] for sign in (-1, 1))
            axes.plot(calls, [value for value, _ in points.values()], "o-", markersize=4, color=colour, label=sampler)
            axes.fill_between(calls, low, high, color=colour, alpha=0.2, linewidth=0)
        ticks = sorted({calls for points in curves.values() for calls in points})
        axes.set(title=title, xscale="log", yscale="log", xlabel="calls of the network")
        axes.set_xticks(ticks, [f"{calls}" for calls in ticks], fontsize="small")
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("Fréchet distance to real images")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(buffer := io.BytesIO(), dpi=168, format="png")
    write_file(file, buffer.getvalue())


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--save_dir", type=Path, default="results")
    args = parser.parse_args()
    section = few_steps((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    panels, (first, second) = [], tables(section)
    for (title, floor), curves in zip(PANELS.items(), (first["Fashion_Mnist"], first["Cifar10"], second), strict=True):
        real, error = re.search(floor, section).groups()
        panels.append((title, (float(real), float(error)), curves))
    args.save_dir.mkdir(parents=True, exist_ok=True)
    plot(panels, file := args.save_dir / "few_steps.png")
    print(file)


if __name__ == "__main__":
    run(main)
