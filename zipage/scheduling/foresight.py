"""Whether a request that would begin on spare blocks can stay: what all are expected to hold from here on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.needs import allowed_tokens, peak_blocks
from zipage.scheduling.output_lengths import OutputLengths
from zipage.scheduling.request import NEVER, Request
from zipage.scheduling.request_line import RequestLine

# A long way is looked at in so many steps, a short one in steps of a block of tokens.
_MAX_STEPS = 16


class Foresight:
    """Expects everyone to compute a token in each step, and to go on as completions of late have.

    Times are counted in blocks of tokens, rounded up.
    """

    def __init__(self, limits: SchedulerLimits, lengths: OutputLengths) -> None:
        self._limits = limits
        self._lengths = lengths
        # What the last answer was about that was no, and the step from which on it is not taken for granted.
        self._refused: tuple[int, int, int] | None = None
        self._refused_until = 0

    def can_stay(self, request: Request, running: RequestLine, step: int) -> bool:
        """Whether blocks are expected to last until a waiting request can be guaranteed what it needs.

        That has to be before its queries are recorded. A no holds until someone begins or ends, or for as many steps as
        a block has tokens.

        Args:
            request: it would begin on spare blocks, and can be compressed.
            running: those that run.
            step: the number of the step that is planned.
        """
        asked = (request.uid, len(running), self._lengths.num_noted)
        if asked == self._refused and step < self._refused_until:
            return False
        # Those of lower classes give way.
        others = [other for other in running if other.rank[0] <= request.rank[0]]
        if self._is_guaranteed_in_time(request, others):
            return True
        self._refused, self._refused_until = asked, step + self._limits.block_size
        return False

    def _is_guaranteed_in_time(self, request: Request, others: Sequence[Request]) -> bool:
        limits, shares = self._limits, self._lengths.shares_reaching(others)
        own, outlooks = self._outlook(request, shares), [self._outlook(other, shares) for other in others]
        last = limits.blocks_for(allowed_tokens(request, limits) - len(request.token_ids))
        stride = max(1, -(-last // _MAX_STEPS))
        for time in range(stride, last + 1, stride):
            expected = _Expected.at(time, outlooks)
            if expected.reserved + own.peak <= limits.num_blocks and expected.slots + 1 <= limits.num_query_slots:
                return True
            if expected.blocks + own.blocks_at(time) > limits.num_blocks:
                return False
        return False

    def _outlook(self, request: Request, shares: Sequence[float]) -> "_Outlook":
        limits, first = self._limits, min(self._lengths.bin_of(request), len(shares) - 1)
        peak = request.reserved_blocks or peak_blocks(request, limits)
        return _Outlook(
            blocks=min(peak, limits.blocks_for(request.resident_length + request.num_uncomputed)),
            peak=peak,
            needs_slot=request.query_buffer >= 0 or request.next_compression != NEVER,
            most_left=limits.blocks_for(request.max_length - len(request.token_ids)),
            shares=shares[first:],
        )


@dataclass(frozen=True)
class _Outlook:
    """What one request holds as long as it goes on; times are blocks of tokens from now.

    Attributes:
        blocks, peak: that it needs for its known tokens, and most at a time.
        needs_slot: it holds a query slot, or will.
        most_left: when it ends at the latest.
        shares: of completions, those that become as long as it is at each time.
    """

    blocks: int
    peak: int
    needs_slot: bool
    most_left: int
    shares: Sequence[float]

    def blocks_at(self, time: int) -> int:
        return min(self.blocks + time, self.peak)

    def share_at(self, time: int) -> float:
        """How likely it has not ended; where none has become so long, it goes on."""
        if time >= self.most_left:
            return 0.0
        return self.shares[min(time, len(self.shares) - 1)] / self.shares[0] if self.shares[0] else 1.0


@dataclass
class _Expected:
    """Of all requests that run, at one time: blocks held, blocks that guarantees take, and query slots."""

    blocks: float = 0.0
    reserved: float = 0.0
    slots: float = 0.0

    @classmethod
    def at(cls, time: int, outlooks: Iterable[_Outlook]) -> "_Expected":
        expected = cls()
        for outlook in outlooks:
            share = outlook.share_at(time)
            expected.blocks += share * outlook.blocks_at(time)
            expected.reserved += share * outlook.peak
            expected.slots += share * outlook.needs_slot
        return expected
