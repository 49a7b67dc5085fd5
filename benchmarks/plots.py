"""Plots two tables of docs/results.md, both axes logarithmic: "Few steps" and "Small diffusion by minutes".

    python benchmarks/plots.py

few_steps.png shows distances against the calls of the network, minutes.png against the images that a training has seen.
A band or bar shows one standard error, and the grey line real images.
"""

import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from files.atomic import write_file
from utils.command_line import ArgumentParser, run

ROOT = Path(__file__).parent.parent
MEASURED = r"(-?[\d.]+) ± ([\d.]+)"  # a distance and its standard error
PANELS = {  # title: how the sentence above its table gives the distance of real images
    "Fashion_Mnist, 1,000 samples": rf"of Fashion_Mnist \(real images: {MEASURED}\)",
    "Cifar10, 1,000 samples": rf"of Cifar10\s\({MEASURED}\)",
    "Digits, 297 samples": rf"real digits \(which have {MEASURED}\)",
}
COLOURS = {"NaiveDDPM": "tab:red", "DDPM": "tab:orange", "DDIM": "tab:green", "DPMpp": "tab:blue"}
COLOURS |= {"UniPC": "tab:purple", "Tuned": "black"}

Points = dict[int, tuple[float, float]]  # {calls or images: (distance, its standard error)}


def section(text: str, title: str) -> str:
    """A section of the document."""
    return re.search(rf"^## {title}\n(.*?)(^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of each row of each table, with the heads."""
    for line in re.findall(r"^\| (.*) \|$", text.replace("*", "").replace("`", ""), re.MULTILINE):
        if "---" not in line:
            yield line.split(" | ")


def measured(cell: str) -> tuple[float, float] | None:
    """The distance and its error in a cell, if it has one."""
    found = re.fullmatch(MEASURED, cell)
    return found and (float(found[1]), float(found[2]))


# --- few steps --------------------------------------------------------------------------------------------------------


def few_steps(text: str) -> tuple[dict[str, dict[str, Points]], dict[str, Points]]:
    """{data: {sampler: its points}} of the first table, and {sampler: its points} of the second one."""
    first, second, calls = {}, {}, []
    for cells in rows(text):
        if cells[0] in ("sampler", "steps"):
            calls = [int(number) for number in re.findall(r"\d+", " ".join(cells))]
        else:
            values = [measured(cell) for cell in cells[-len(calls) :]]
            curves = second if len(cells) == 1 + len(calls) else first.setdefault(cells[1], {})
            curves[cells[0]] = {n: value for n, value in zip(calls, values, strict=True) if value}
    return first, second


def plot_few_steps(text: str) -> Figure:
    (first, second), figure = few_steps(text), Figure(figsize=(10, 4), layout="constrained")
    panels = zip(PANELS.items(), (first["Fashion_Mnist"], first["Cifar10"], second), strict=True)
    for axes, ((title, floor), curves) in zip(figure.subplots(1, len(PANELS)), panels, strict=True):
        real_line(axes, *map(float, re.search(floor, text).groups()))
        for sampler, points in curves.items():
            colour, calls = COLOURS[sampler.split()[0]], list(points)
            low, high = ([value + sign * error for value, error in points.values()] for sign in (-1, 1))
            values, label = [value for value, _ in points.values()], sampler.split(",")[0]
            axes.plot(calls, values, "o-", markersize=4, color=colour, label=label)
            axes.fill_between(calls, low, high, color=colour, alpha=0.2, linewidth=0)
        ticks = sorted({calls for points in curves.values() for calls in points})
        axes.set(title=title, xscale="log", yscale="log", xlabel="calls of the network")
        axes.set_xticks(ticks, [f"{calls}" for calls in ticks], fontsize="small")
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("Fréchet distance to real images")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


# --- minutes ----------------------------------------------------------------------------------------------------------


def by_images(text: str) -> dict[str, dict[str, dict[str, Points]]]:
    """{data: {kind of distance: {recipe, guidance: its points}}} of the tables, whose heads name the data."""
    found, head = {}, []
    for cells in rows(text):
        if "images seen" in cells:
            head, of_data = cells, found.setdefault(cells[0], {"Fréchet": {}, "kernel": {}})
            continue
        row = dict(zip(head, cells, strict=True))
        guidance = "" if row["guidance"] == "–" else f", guidance {row['guidance']}"
        for kind, curves in of_data.items():
            if value := measured(row[kind]):
                points = curves.setdefault(row[head[0]] + guidance, {})
                points[int(row["images seen"].replace(",", ""))] = value
    return found


def plot_minutes(text: str) -> Figure:
    found, figure = by_images(text), Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(len(found), 2, sharex="row", squeeze=False)
    for line, (data, of_data) in zip(panels, found.items(), strict=True):
        labels = list(dict.fromkeys(label for curves in of_data.values() for label in curves))
        for axes, (kind, curves) in zip(line, of_data.items(), strict=True):
            for label, points in curves.items():
                values, errors = zip(*points.values(), strict=True)
                ten, number = divmod(labels.index(label), 10)
                look = {"fmt": "osd"[ten], "color": f"C{number}", "markersize": 4 + ten}
                axes.errorbar(list(points), values, errors, label=label, **look)
            real = re.search(rf"{data} \(real images: Fréchet {MEASURED}, kernel {MEASURED}\)", text).groups()
            value, error = map(float, real[:2] if kind == "Fréchet" else real[2:])
            if value > 0:  # a kernel distance of about 0 has no logarithm
                real_line(axes, value, error)
            axes.set(title=f"{data}, {kind} distance", xscale="log", yscale="log", xlabel="images seen")
            axes.grid(alpha=0.3, which="both")
        line[1].legend(
            *line[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small"
        )
    return figure


def real_line(axes: Axes, value: float, error: float) -> None:
    axes.axhspan(value - error, value + error, color="0.9")
    axes.axhline(value, color="0.5", label="real images")


PLOTS = {"few_steps": ("Few steps", plot_few_steps), "minutes": ("Small diffusion by minutes", plot_minutes)}


def main() -> None:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--save_dir", type=Path, default="results")
    args = parser.parse_args()
    args.save_dir.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, (title, plot) in PLOTS.items():
        plot(section(text, title)).savefig(buffer := io.BytesIO(), dpi=168, format="png")
        small = Image.open(buffer).convert("RGB").quantize(256)  # two fifths of the bytes
        small.save(buffer := io.BytesIO(), format="png", optimize=True)
        write_file(file := args.save_dir / f"{name}.png", buffer.getvalue())
        print(file)


if __name__ == "__main__":
    run(main)
