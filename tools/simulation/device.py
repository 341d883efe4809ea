"""One device that runs steps and jobs side by side, each of them slower for it."""

from collections import deque
from dataclasses import dataclass, field
from functools import partial

from tools.simulation.clock import Action, EventQueue


@dataclass
class Piece:
    """A step or a job: the seconds that it still takes alone, and what follows its end."""

    seconds: float
    on_end: Action


@dataclass
class Lane:
    """The work of one process, one piece after the other; `slowdown` is its factor beside work of the other lane."""

    slowdown: float
    pieces: deque[Piece] = field(default_factory=deque)
    busy_seconds: float = 0.0


class Device:
    """Two lanes: the decode worker's steps and the compression worker's jobs."""

    def __init__(self, events: EventQueue, step_slowdown: float, job_slowdown: float) -> None:
        self.steps, self.jobs = Lane(step_slowdown), Lane(job_slowdown)
        self._events = events
        self._now = 0.0
        # Counts the changes after which an end that was foreseen does not hold any more.
        self._changes = 0

    def submit(self, lane: Lane, seconds: float, on_end: Action, now: float) -> None:
        """Put work of `seconds` alone at the end of a lane."""
        self._advance(now)
        lane.pieces.append(Piece(seconds, on_end))
        if len(lane.pieces) == 1:
            self._foresee()

    def _advance(self, now: float) -> None:
        elapsed, self._now = now - self._now, now
        for lane in (self.steps, self.jobs):
            if lane.pieces:
                lane.busy_seconds += elapsed
                lane.pieces[0].seconds -= elapsed / self._factor(lane)

    def _factor(self, lane: Lane) -> float:
        return lane.slowdown if self.steps.pieces and self.jobs.pieces else 1.0

    def _foresee(self) -> None:
        """Have the piece end that is the first to end as things are."""
        self._changes += 1
        ends = [
            # What is left can be less than nothing by a rounding error.
            (self._now + max(0.0, lane.pieces[0].seconds) * self._factor(lane), lane)
            for lane in (self.steps, self.jobs)
            if lane.pieces
        ]
        if ends:
            time, lane = min(ends, key=lambda end: end[0])
            self._events.at(time, partial(self._end, lane, self._changes))

    def _end(self, lane: Lane, change: int, now: float) -> None:
        if change != self._changes:
            return
        self._advance(now)
        piece = lane.pieces.popleft()
        self._foresee()
        piece.on_end(now)
