"""How a script ends: well, or with one line on stderr that says what was wrong, where, and what to do."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from datasets import DataError


class ConfigError(Exception):
    """An argument or a configuration that cannot be meant so: exit 2, before anything has happened."""


class CheckpointError(Exception):
    """A checkpoint that cannot be used or written: exit 1."""


class DamagedCheckpointError(CheckpointError):
    """A file that is cut or garbled, so that the one before it may take its place."""


class TrainingError(Exception):
    """A training that cannot go on: exit 1. Its checkpoints are good."""


class Stopped(Exception):
    """A training that ended because it was asked to: exit 128 + the signal's number, as shells have it."""

    def __init__(self, signum: int, message: str):
        super().__init__(f"stopped by {signal.Signals(signum).name} {message}")
        self.signum = signum


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with its errors in one line like all others, and no abbreviated flags."""

    def __init__(self, **keywords):
        super().__init__(allow_abbrev=False, **keywords)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists every argument)")


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument's type: a whole number from `least` on, up to `most`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{value} is not {f'from {least} to {most}' if most else f'at least {least}'}"
            )
        return value

    return parse


@contextmanager
def out_of_memory_means(advice: str) -> Iterator[None]:
    """An out-of-memory error of the block, of any device, as a TrainingError with this advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(f"out of memory: {advice}") from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def run(main: Callable[[], None]) -> None:
    """Runs a script's main. What a user can cause becomes one line and an exit code; a bug keeps its traceback."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be anything
    try:
        main()
    except ConfigError as error:
        _stop(2, str(error))
    except (CheckpointError, DataError, TrainingError) as error:
        _stop(1, str(error))
    except Stopped as stopped:
        _stop(128 + stopped.signum, str(stopped), "")
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        _stop(1, f"{what}; what was saved before is untouched")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _stop(1, "out of memory: use a smaller batch_size, sample_num or network")
    except KeyboardInterrupt:
        _stop(130, "stopped by the keyboard")


def _stop(code: int, message: str, kind: str = "error: ") -> NoReturn:
    """Ends the process with one line. Of several processes only the first says what all of them would say."""
    if code not in (2, 130, 143) or os.environ.get("RANK", "0") == "0":
        print(f"{kind}{' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(code)
