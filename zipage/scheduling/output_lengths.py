"""How long completions have become of late, and how many of those that run are so expected to go on."""

from collections import Counter, deque
from collections.abc import Iterable

from zipage.scheduling.request import Request

_MAX_KEPT = 512


class OutputLengths:
    """Output lengths of the last completions that have ended, in bins of `bin_tokens` tokens.

    Attributes:
        num_noted: completions that have ended, those that are forgotten among them.
    """

    def __init__(self, bin_tokens: int) -> None:
        self.num_noted = 0
        self._bin_tokens = bin_tokens
        # For each its bin, and whether `max_length` has cut it off: it then says nothing of how others go on.
        self._ended: deque[tuple[int, bool]] = deque(maxlen=_MAX_KEPT)

    def note_end(self, request: Request) -> None:
        """Keep the length of a request that has run and ends."""
        self.num_noted += 1
        self._ended.append((self.bin_of(request), len(request.token_ids) >= request.max_length))

    def bin_of(self, request: Request) -> int:
        return request.num_output_tokens // self._bin_tokens

    def shares_reaching(self, running: Iterable[Request]) -> list[float]:
        """The share of completions that reach each bin (Kaplan and Meier); no more of them end beyond the last one.

        Those that run count as far as they have come. Without them only the short ones would be known at first.
        """
        seen = Counter(self.bin_of(request) for request in running)
        stopped = Counter(index for index, is_cut in self._ended if not is_cut)
        seen.update(index for index, _ in self._ended)
        num_reaching, shares = seen.total(), [1.0]
        for index in range(max(seen, default=-1) + 1):
            shares.append(shares[-1] * (1 - stopped[index] / num_reaching))
            num_reaching -= seen[index]
        return shares
