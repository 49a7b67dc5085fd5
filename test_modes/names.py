"""How the pictures are called."""

from argparse import Namespace
from pathlib import Path


def picture_path(args: Namespace, what: str) -> Path:
    """<save_dir>/<timestamp>_seed<seed>_<model>_<what>.png"""
    return args.save_dir / f"{args.stem}_{args.model_path.stem}_{what}.png"
