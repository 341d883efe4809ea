"""Waits for launched steps in a thread of its own, so that the next step can be launched meanwhile."""

import os
import queue
import select
import threading
from collections.abc import Callable

from zipage.engine_messages import StepResult
from zipage.execution.device_executor import LaunchedStep


class ReturnedSteps:
    """Results of launched steps, in order.

    `wake_fd` is readable while there are results to take, and from the end of the lifeline on: what waits for the
    lifeline alone can wait for this instead.
    """

    def __init__(self, lifeline_fd: int, on_return: Callable[[LaunchedStep], None]) -> None:
        """Args: lifeline_fd; on_return: told of every step as soon as it is done, in the waiting thread."""
        self._on_return = on_return
        self._launched: queue.SimpleQueue[LaunchedStep] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[StepResult | Exception] = queue.SimpleQueue()
        self._lifeline_fd = lifeline_fd
        self._result_fd = os.eventfd(0, os.EFD_SEMAPHORE)
        self._either = select.epoll()
        for descriptor in (lifeline_fd, self._result_fd):
            self._either.register(descriptor, select.EPOLLIN)
        threading.Thread(target=self._wait_for_steps, name="returned steps", daemon=True).start()

    @property
    def wake_fd(self) -> int:
        return self._either.fileno()

    def put(self, step: LaunchedStep) -> None:
        """Wait for this step after those before it."""
        self._launched.put(step)

    def take(self) -> StepResult | None:
        """The next result, None where there is none and the lifeline has ended.

        Raises:
            Exception: what the device has found wrong.
        """
        ready = {descriptor for descriptor, _ in self._either.poll()}
        if self._lifeline_fd in ready:
            return None
        os.eventfd_read(self._result_fd)
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _wait_for_steps(self) -> None:
        while True:
            step = self._launched.get()
            try:
                result: StepResult | Exception = step.wait()
                self._on_return(step)
            except Exception as error:
                result = error
            self._results.put(result)
            os.eventfd_write(self._result_fd, 1)
