"""What a run is: its recipe, its network and its files."""

from runs.run import Run, load_run

__all__ = ["Run", "load_run"]
