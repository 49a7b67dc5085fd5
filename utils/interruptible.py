"""Import this first: Ctrl-C then ends a script quietly while the other imports run, which takes seconds."""

import os
import signal


def quit_quietly(*_) -> None:
    """A handler for SIGINT: exit code 130, the convention of shells, without a traceback."""
    os._exit(130)


def replace_handler(old, new) -> None:
    """Changes the handler of SIGINT, but not one that somebody else set."""
    if signal.getsignal(signal.SIGINT) is old:
        signal.signal(signal.SIGINT, new)


replace_handler(signal.default_int_handler, quit_quietly)
