"""One stream of the device, on which one piece of work is under way at a time."""

from collections.abc import Callable, Sequence

import torch

from zipage import tracing
from zipage.engine_messages import JobAnswer
from zipage.execution.device_clock import DeviceClock, mark


class Lane:
    """Work that is launched at once and answered when the device has done it; on a CPU it is done at once.

    What the device has done before an answer is seen by what any process launches after it.

    Attributes:
        times: when the device began and ended the work that was answered last, in nanoseconds of CLOCK_MONOTONIC; on a
            GPU only where the lane is timed.
    """

    def __init__(self, device: torch.device, is_timed: bool = False) -> None:
        self.times = (0, 0)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._is_timed = is_timed
        self._clock = DeviceClock() if is_timed and self._stream is not None else None
        self._answers: Sequence[JobAnswer] = ()
        self._begin: torch.cuda.Event | None = None
        self._end: torch.cuda.Event | None = None

    @property
    def is_free(self) -> bool:
        """Whether no answer is outstanding."""
        return not self._answers

    def launch(self, work: Callable[[], Sequence[JobAnswer]]) -> None:
        """Have `work`, which gives at least one answer, make its launches on this lane, which is free."""
        if self._stream is None:
            start = tracing.now()
            self._answers = work()
            self.times = (start, tracing.now())
            return
        with torch.cuda.stream(self._stream):
            self._begin = mark(is_timed=True) if self._is_timed else None
            self._answers = work()
            self._end = mark(self._is_timed)

    def take_answers(self) -> list[JobAnswer]:
        """The answers of the work where it is done, which frees the lane; otherwise none."""
        if self._end is not None and not self._end.query():
            return []
        if self._clock is not None and self._begin is not None and self._end is not None:
            self.times = (self._clock.time_of(self._begin), self._clock.time_of(self._end))
            self._clock.saw(self._end)
        answers, self._answers, self._begin, self._end = list(self._answers), (), None, None
        return answers
