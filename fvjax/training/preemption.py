"""Being asked to stop (SIGTERM, SIGUSR1, Ctrl-C): what is trained is saved first, and the exit code says so."""

import signal
from collections.abc import Callable
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL, which schedulers are told to requeue on: the same command goes on where this one stopped
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(BaseException):
    """This process was asked to stop, and nothing that it did is unsaved. Not an Exception: nobody is to mend it."""


class Request:
    """Whether somebody asked to stop, as `asked`. A second signal ends the process as if nobody listened.

    Where nothing is unsaved (loading, compiling, evaluating) a signal raises :class:`Preempted` at once. Otherwise who
    set `unsaved` sees `asked`, saves, and says :meth:`saved`.

    Attributes:
        before_leaving: to call before the process ends, as what is saved may still be on its way to the disk.
    """

    def __init__(self):
        self.asked = self.unsaved = self._listening = False
        self.name = ""
        self.before_leaving: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """From now on. In the main thread only."""
        self._listening = True
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def take_over(self) -> None:
        """Listen again, if it did, after somebody else has."""
        if self._listening:
            self.listen()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.asked, self.name = True, signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if not self.unsaved:
            raise Preempted(f"stopped by {self.name}")

    def saved(self, stop: bool) -> None:
        """Nothing is unsaved now. Raises Preempted with `stop` or if a signal came."""
        self.unsaved = False
        if stop or self.asked:
            raise Preempted(f"stopped by {self.name or 'a signal to another process'}")
