"""Ctrl-C and SIGTERM as a request: finish the step, save, then leave."""

import signal
import threading
from types import FrameType, TracebackType


class StopRequest:
    """As a context manager, notes the first SIGINT or SIGTERM instead of dying; a second SIGINT interrupts.

    In a thread other than the main one, where Python lets no handler be set, it notes nothing.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        here = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if here else ()
        self.before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, as shells expect; 0 after SIGTERM, which is how a scheduler asks for an orderly end."""
        return 130 if self.signal == signal.SIGINT else 0
