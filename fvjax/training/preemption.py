"""Requests to stop (SIGTERM, SIGUSR1, Ctrl-C): training is saved first, and the exit code says so."""

import signal
from collections.abc import Callable
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: schedulers can requeue on it, since the same command resumes where this one stopped
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(BaseException):
    """This process was asked to stop and has saved everything. Not an Exception, because nothing is wrong."""


class Request:
    """Lets signals ask the training loop to save and stop. A second signal ends the process as if nobody listened.

    While nothing is unsaved (loading, compiling, evaluating) a signal raises :class:`Preempted` at once. Otherwise the
    loop, which set `unsaved`, sees `asked`, saves, and calls :meth:`saved`.

    Attributes:
        before_leaving: to call before the process ends, because a save may still be on its way to the disk.
    """

    def __init__(self):
        self.asked = self.unsaved = self._listening = False
        self.name = ""
        self.before_leaving: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Listen from now on. In the main thread only."""
        self._listening = True
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def take_over(self) -> None:
        """Listen again after a library has taken the signals for itself; nothing if this did not listen before."""
        if self._listening:
            self.listen()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.asked, self.name = True, signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self.unsaved:
            raise Preempted(f"stopped by {self.name}")

    def saved(self, stop: bool) -> None:
        """Note that nothing is unsaved. Raises Preempted if `stop` is set or a signal has come."""
        self.unsaved = False
        if stop or self.asked:
            raise Preempted(f"stopped by {self.name or 'a signal to another process'}")
