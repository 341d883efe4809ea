"""Which processes are started again when one has ended, and when a process is given up."""

from collections import Counter
from collections.abc import Mapping, Sequence

# A process that has been ready for so long counts as started well.
STEADY_SECONDS = 1.0
MOST_FAILURES = 3

# Who is started again with a process that has ended, beside itself; the engine ends with one that is not named here.
# The compression worker has opened the memory that the decode worker owns. Under MPS a fault of a decode worker can
# have left the daemon unable to take new clients, and the end of the daemon ends its clients.
COMPANIONS: Mapping[str, Sequence[str]] = {
    "mps": ("decode", "compression"),
    "decode": ("compression", "mps"),
    "compression": (),
}


class RestartRule:
    """Decides whether a process that has ended by itself, in an engine that was ready once, is started again.

    The rule: a process is given up when three of its ends in a row were failures. An end is a failure when it came
    before the process was ready, or less than one second after. Any other end begins the count anew, so a process that
    serves for some seconds each time is started again without limit. Ends that the supervisor has caused, because
    another process had to be started again, change nothing.

    Beside that, a process that is not ready within `ready_timeout` of its start ends the engine at once (`Watch`):
    another try would keep the requests waiting for as long again.
    """

    def __init__(self) -> None:
        self._ready_since: dict[str, float] = {}
        self._failures: Counter[str] = Counter()

    def note_ready(self, name: str, now: float) -> None:
        """Process `name` became ready at `now`, in seconds of a monotonic clock."""
        self._ready_since[name] = now

    def note_replaced(self, name: str) -> None:
        """The supervisor has ended process `name`, or is about to start it again."""
        self._ready_since.pop(name, None)

    def may_restart(self, name: str, now: float) -> bool:
        """Note that process `name` has ended by itself at `now`; False where it is to be given up."""
        since = self._ready_since.pop(name, None)
        failed = since is None or now - since < STEADY_SECONDS
        self._failures[name] = self._failures[name] + 1 if failed else 0
        return self._failures[name] < MOST_FAILURES
