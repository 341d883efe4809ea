"""Results of launched steps come back through a thread, in order, until the lifeline ends."""

import os
import select
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from zipage.engine_messages import SampledToken, StepResult
from zipage.execution.decode_graphs import padded_sizes
from zipage.execution.device_executor import LaunchedStep
from zipage.execution.returned_steps import ReturnedSteps


@dataclass
class HeldEvent:
    """Stands for the device's event: happens when the test says so, or fails."""

    happened: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def synchronize(self) -> None:
        self.happened.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def lifeline() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def launched(step_id: int, event: HeldEvent) -> LaunchedStep:
    return LaunchedStep(step_id, [4, 2], [torch.tensor([step_id])], [SampledToken(9, -0.5, [])], event)


def is_readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def test_results_come_in_order_as_the_device_gets_there(lifeline):
    returned = ReturnedSteps(lifeline[0], lambda _: None)
    events = HeldEvent(), HeldEvent()
    for step_id, event in enumerate(events):
        returned.put(launched(step_id, event))
    events[1].happened.set()
    assert not is_readable(returned.wake_fd, 0.05)
    events[0].happened.set()
    for step_id in range(2):
        assert is_readable(returned.wake_fd, 10)
        assert returned.take() == StepResult(step_id, [4, 2], [SampledToken(step_id), SampledToken(9, -0.5, [])])
    assert not is_readable(returned.wake_fd, 0)


def test_the_end_of_the_lifeline_comes_before_results(lifeline):
    returned = ReturnedSteps(lifeline[0], lambda _: None)
    os.write(lifeline[1], b"\0")
    assert is_readable(returned.wake_fd, 10)
    assert returned.take() is None


def test_what_the_device_finds_wrong_is_raised(lifeline):
    returned = ReturnedSteps(lifeline[0], lambda _: None)
    event = HeldEvent(error=RuntimeError("illegal address"))
    event.happened.set()
    returned.put(launched(0, event))
    assert is_readable(returned.wake_fd, 10)
    with pytest.raises(RuntimeError, match="illegal address"):
        returned.take()


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20]), (24, [1, 2, 4, 8, 16, 24])],
)
def test_batches_are_padded_to_few_sizes(most, sizes):
    assert padded_sizes(most) == sizes
