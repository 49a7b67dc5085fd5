"""SIGINT and SIGTERM, put off to the end of the step."""

import os
import signal

from utils.processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Notices Ctrl-C and SIGTERM, for the training loop to ask after each step; a second one ends the process at once.

    Under torchrun a signal may come twice, from a terminal or a scheduler and from torchrun itself. So there a second
    one changes nothing; torchrun itself kills what has not ended 30 seconds after the first.
    """

    def __init__(self, processes: Processes):
        self.processes = processes
        self.signum = 0

    def __enter__(self) -> "StopRequest":
        self.before = {signum: signal.signal(signum, self._notice) for signum in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for signum, handler in self.before.items():
            signal.signal(signum, handler)

    def _notice(self, signum: int, _frame) -> None:
        self.signum, alone = signum, self.processes.world == 1
        if alone:
            for other in SIGNALS:  # the kernel's own way: it does not wait for a backward pass to end
                signal.signal(other, signal.SIG_DFL)
        again = ", or again to stop at once" if alone else ""
        os.write(2, f"\n{signal.Signals(signum).name}: one moment, to finish the step and save{again}\n".encode())

    def agreed(self) -> int:
        """The signal that any process has noticed, 0 for none; all get the same answer at the same step."""
        return self.processes.largest(self.signum)
