"""How long a request is kept from decoding by its compressions."""

from dataclasses import dataclass


@dataclass
class StallClock:
    """Adds up the stalls of one request: from a plan that passes it over for a compression to one that does not.

    Times in seconds of the caller's clock.

    Attributes:
        total: seconds of all stalls, as far as they were counted.
        in_shadow: of these, the seconds in intervals whose job was a shadow one.
        since: from when the stall that lasts is still to be counted, None where none lasts.
        is_shadow: the last job that has begun is a shadow one.
    """

    total: float = 0.0
    in_shadow: float = 0.0
    since: float | None = None
    is_shadow: bool = False

    def begin(self, now: float) -> None:
        """Note that the request is passed over, again or for the first time."""
        if self.since is None:
            self.since = now

    def count(self, now: float) -> float:
        """Count a stall up to now, as one of the last job's kind; returns its seconds, 0 where none lasts."""
        if self.since is None:
            return 0.0
        seconds, self.since = now - self.since, now
        self.total += seconds
        if self.is_shadow:
            self.in_shadow += seconds
        return seconds

    def end(self, now: float) -> float:
        """Note that a compression does not hold the request up any more; returns the seconds that are counted now."""
        seconds = self.count(now)
        self.since = None
        return seconds
