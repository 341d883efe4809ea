"""One stream of the device, on which one piece of work is under way at a time."""

from collections.abc import Callable, Sequence

import torch

from zipage.messages import JobAnswer


class Lane:
    """Work that is launched at once and answered when the device has done it; on a CPU it is done at once.

    What the device has done before an answer is seen by what any process launches after it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._answers: Sequence[JobAnswer] = ()
        self._end: torch.cuda.Event | None = None

    @property
    def is_free(self) -> bool:
        """Whether no answer is outstanding."""
        return not self._answers

    def launch(self, work: Callable[[], Sequence[JobAnswer]]) -> None:
        """Have `work`, which gives at least one answer, make its launches on this lane, which is free."""
        if self._stream is None:
            self._answers = work()
            return
        with torch.cuda.stream(self._stream):
            self._answers = work()
            self._end = self._stream.record_event()

    def take_answers(self) -> list[JobAnswer]:
        """The answers of the work where it is done, which frees the lane; otherwise none."""
        if self._end is not None and not self._end.query():
            return []
        answers, self._answers, self._end = list(self._answers), (), None
        return answers
