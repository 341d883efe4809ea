"""Stop strings in a text that arrives in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a growing text and holds back whatever might be the beginning of one.

    The stop string that is complete first wins: where one is found does not depend on how the text was cut into
    pieces. Of several that end with the same character, the longest wins. With `include_stop` the returned text ends
    with the stop string, else before it.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str, may_match: bool = True) -> tuple[str, str | None]:
        """Take the next piece of text.

        Args:
            text: the piece.
            may_match: whether a stop string that this piece completes counts.

        Returns:
            The text that is final, and the stop string that was found. Nothing may be pushed after one was found.
        """
        if not self._stops:
            return text, None
        buffer = self._held + text
        match = self._find(buffer) if may_match else None
        if match is not None:
            end, stop = match
            self._held = ""
            return buffer[: end if self._include_stop else end - len(stop)], stop
        final = len(buffer) - self._partial_length(buffer)
        self._held = buffer[final:]
        return buffer[:final], None

    def flush(self) -> str:
        """The text that is held back, which has turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, buffer: str) -> tuple[int, str] | None:
        """End and stop string of the match that ends first; it ends after the text that was held back."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = buffer.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), -len(stop)) < (best[0], -len(best[1]))):
                best = start + len(stop), stop
        return best

    def _partial_length(self, buffer: str) -> int:
        """Length of the longest end of `buffer` that some stop string, other than itself, begins with."""
        for length in range(min(len(buffer), max(map(len, self._stops)) - 1), 0, -1):
            tail = buffer[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stops):
                return length
        return 0
