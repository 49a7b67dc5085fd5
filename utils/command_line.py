"""What the scripts share on the command line: parsing arguments, and ending with one line and an exit code."""

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from datasets import DataError
from files.errors import CheckpointError, ConfigError, Stopped, TrainingError, out_of_memory_means
from utils.device import keep_freed_memory, rank_and_world
from utils.interruptible import quit_quietly, replace_handler

LONGEST = 1500  # characters of an error message


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
        unknown = [flag.replace("=", " ").split() for flag in message.split(" --")[1:]]
        keys = " ".join(f"{key}={','.join(values)}" for key, *values in unknown if values)
        if message.startswith("unrecognized") and keys and "--set" in self._option_string_actions:
            message += f"; a key of the configuration is given as --set {keys}"
        raise ConfigError(f"{message} (--help lists every argument)")


def number(least: int, most: float = math.inf, kind: type = int) -> Callable[[str], int | float]:
    """An argument type: a whole number, or one of kind float, from `least` to `most`, both included."""

    def number(text: str) -> int | float:  # argparse shows its name where kind(text) is a ValueError
        value = kind(text)
        if not least <= value <= most:  # False for nan
            limits = f"from {least} to {most}" if most < math.inf else f"at least {least}"
            raise argparse.ArgumentTypeError(f"{text} is not {limits}")
        return value

    return number


def run(main: Callable[[], None]) -> None:
    """Runs a script's main. Errors that a user can cause end it with one line; a bug keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names may hold any bytes
    replace_handler(quit_quietly, signal.default_int_handler)
    keep_freed_memory()
    try:
        with out_of_memory_means("use a smaller batch_size, sample_num or network"):
            main()
        sys.stdout.flush()
    except (ConfigError, CheckpointError, DataError, TrainingError, FloatingPointError) as error:
        _exit(2 if isinstance(error, ConfigError) else 1, str(error))
    except Stopped as stopped:
        _exit(128 + stopped.signum, str(stopped), "")
    except OSError as error:
        where = error.filename or ("the output (stdout)" if _stdout_is_lost() else None)
        what = f"{where}: {error.strerror}" if where and error.strerror else str(error)
        _exit(141 if isinstance(error, BrokenPipeError) else 1, f"{what}; files saved before are unchanged")
    except KeyboardInterrupt:
        _exit(130, "stopped by the keyboard", "")
    finally:
        replace_handler(signal.default_int_handler, quit_quietly)  # while Python ends


def _stdout_is_lost() -> bool:
    """Whether nothing can be printed any more. Then nothing is: Python would complain about it at its end."""
    try:
        print(flush=True)  # unbuffered, there would be nothing to flush
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _exit(code: int, message: str, kind: str = "error: ") -> NoReturn:
    """Prints one line and exits. Of several processes only rank 0 prints what all of them would print."""
    if code not in (2, 130, 143) or rank_and_world()[0] == 0:
        message = " ".join(message.split())
        if len(message) > LONGEST:  # it quotes something long
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 2 :]}"
        print(f"{kind}{message}", file=sys.stderr, flush=True)
    sys.exit(code)
