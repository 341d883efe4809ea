"""Requests in the order in which they are served."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from zipage.scheduling.request import Request


class RequestLine:
    """Requests by priority class, and first come, first served inside one, however often they have been in the line."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __reversed__(self) -> Iterator[Request]:
        return reversed(self._requests)

    @property
    def first(self) -> Request | None:
        return self._requests[0] if self._requests else None

    def add(self, request: Request) -> None:
        """Put a request into its place."""
        insort(self._requests, request, key=_rank)

    def remove(self, request: Request) -> None:
        """Take a request out.

        Raises:
            ValueError: it is not in the line.
        """
        index = bisect_left(self._requests, request.rank, key=_rank)
        if index == len(self._requests) or self._requests[index] is not request:
            raise ValueError(f"request {request.uid} is not in the line")
        del self._requests[index]


def _rank(request: Request) -> tuple[int, int]:
    return request.rank
