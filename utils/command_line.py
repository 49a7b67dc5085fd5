"""What the scripts share on the command line: parsing arguments, and ending with one line and an exit code."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import NoReturn, TextIO

from datasets import DataError
from diffusion.schedule import BETA_SCHEDULES
from files.errors import CheckpointError, ConfigError, Stopped, TrainingError, is_out_of_memory
from utils.device import rank_and_world
from utils.interruptible import quit_quietly, replace_handler

# control characters except line breaks and tabs, and those that change the direction of writing
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LONGEST = 1500  # characters of an error message
BAR_MOVES = re.compile(r"(\n|\r| |\x1b\[A)*")  # what tqdm writes between its bars


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with one-line errors, without abbreviated flags and without empty values."""

    def __init__(self, **keywords):
        super().__init__(allow_abbrev=False, **keywords)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else list(args)
        for flag, value in zip(["an argument", *args], args, strict=False):
            if not value or (value.startswith("--") and value.endswith("=")):
                self.error(f"{value.rstrip('=') or flag} is empty: give it a value, or leave it out")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists every argument)")


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument type: a whole number from `least` to `most`, both included."""

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


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """The flags for a checkpoint without a recipe. For any other checkpoint they must agree with its recipe."""
    group = parser.add_argument_group("for a checkpoint without a recipe; must agree with the recipe of any other")
    group.add_argument("--image_size", type=int, help="pixels a side")
    group.add_argument("--image_channel", type=int, help="1 (grey) or 3 (RGB)")
    group.add_argument("--training_timestep_num", type=int, help="T of the training, 1000 by default")
    group.add_argument("--beta_schedule", help=f"{' | '.join(BETA_SCHEDULES)}; default: cosine")


def recipe_flags(args: argparse.Namespace) -> dict:
    """The recipe keys that `add_recipe_flags` was given on the command line, None where a flag is missing."""
    given = {key: getattr(args, key) for key in ("image_size", "image_channel", "beta_schedule")}
    return given | {"timestep_num": args.training_timestep_num}


def run(main: Callable[[], None]) -> None:
    """Runs a script's main. Errors that a user can cause end it with one line; a bug keeps its traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    with redirect_stdout(Visible(sys.stdout)), redirect_stderr(Visible(sys.stderr)):
        replace_handler(quit_quietly, signal.default_int_handler)
        try:
            _run(main)
        finally:
            replace_handler(signal.default_int_handler, quit_quietly)  # while Python ends


class Visible:
    """A text stream that writes control characters as \\x1b and the like: names in files may hold any character."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if BAR_MOVES.fullmatch(text):
            return self._stream.write(text)
        start = "\r" if text.startswith("\r") else ""  # of a progress bar
        return self._stream.write(start + CONTROL.sub(lambda match: ascii(match[0])[1:-1], text[len(start) :]))


def _run(main: Callable[[], None]) -> None:
    try:
        main()
        sys.stdout.flush()
    except ConfigError as error:
        _exit(2, str(error))
    except (CheckpointError, DataError, TrainingError) as error:
        _exit(1, str(error))
    except Stopped as stopped:
        _exit(128 + stopped.signum, str(stopped), "")
    except BrokenPipeError:
        _stdout_is_lost()
        _exit(141, "the output is not read any more; files saved before are unchanged")
    except OSError as error:
        where = error.filename or ("the output (stdout)" if _stdout_is_lost() else None)
        what = f"{where}: {error.strerror}" if where and error.strerror else str(error)
        _exit(1, f"{what}; files saved before are unchanged")
    except FloatingPointError as error:
        _exit(1, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _exit(1, "out of memory: use a smaller batch_size, sample_num or network")
    except KeyboardInterrupt:
        _exit(130, "stopped by the keyboard", "")


def _is_first() -> bool:
    try:
        return rank_and_world()[0] == 0
    except ConfigError:  # about the number of this process
        return True


def _stdout_is_lost() -> bool:
    """Whether nothing can be printed any more. Then nothing is: Python would complain about it at its end."""
    try:
        print(flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _exit(code: int, message: str, kind: str = "error: ") -> NoReturn:
    """Prints one line and exits. Of several processes only rank 0 prints what all of them would print."""
    if code not in (2, 130, 143) or _is_first():
        message = " ".join(message.split())
        if len(message) > LONGEST:  # it quotes something long
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        print(f"{kind}{message}", file=sys.stderr, flush=True)
    sys.exit(code)
