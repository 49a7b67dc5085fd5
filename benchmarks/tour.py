"""Runs docs/tour.ipynb and saves it with what it printed and drew, but no times and progress bars:   make tour"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parent.parent))
from utils.command_line import ArgumentParser, run

TOUR = Path(__file__).parent.parent / "docs" / "tour.ipynb"


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save_as", type=Path, default=TOUR, metavar="FILE", help="default: docs/tour.ipynb itself")
    args = parser.parse_args()
    notebook = nbformat.read(TOUR, as_version=4)
    NotebookClient(
        notebook, timeout=900, record_timing=False, resources={"metadata": {"path": str(TOUR.parent)}}
    ).execute()
    notebook.metadata.language_info = {"name": "python"}  # without the version of this machine's Python
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):  # notebooks add small pictures as JPEG, and as text
                    output.data = {"image/png": output.data["image/png"]}
    nbformat.write(notebook, args.save_as)


if __name__ == "__main__":
    run(main)
