"""Which workers are there and which pool they have: what may be sent to them when they start, and start again."""

from zipage.engine_messages import OpenPool, PoolExport


class PoolHandshake:
    """The decode worker exports a pool, and the compression worker says hello and opens it, however often either comes.

    No step is planned in a new pool before a compression worker has opened it. One that has not may still be busy with
    jobs in the pool before, which on a CPU is the same memory.

    Attributes:
        export: the pool of the decode worker that came last.
    """

    def __init__(self, export: PoolExport) -> None:
        self.export = export
        self._num_exports, self._num_hellos = 1, 0
        self._has_decode_worker, self._has_compression_worker = True, False
        # Messages that the present compression worker has not answered, and whether it has opened the present pool.
        self._unanswered = 0
        self._is_open = False
        # Whether a compression worker has opened the present pool, perhaps one that is not there any more.
        self._is_usable = False

    @property
    def restarts(self) -> int:
        """Workers that have come in the place of others."""
        return self._num_exports - 1 + max(0, self._num_hellos - 1)

    @property
    def takes_steps(self) -> bool:
        """A step can be computed, as far as is known."""
        return self._has_decode_worker and self._is_usable

    @property
    def takes_jobs(self) -> bool:
        """A job can be done, as far as is known."""
        return self._has_compression_worker and self._is_open

    @property
    def takes_answers(self) -> bool:
        """Answers are about jobs in the present pool. They may arrive after their sender is known to have gone."""
        return self._is_open

    def decode_started(self, export: PoolExport) -> OpenPool | None:
        """Note a decode worker that has come in another's place; returns what the compression worker is told."""
        self.export = export
        self._num_exports += 1
        self._has_decode_worker = True
        self._is_open = self._is_usable = False
        return self._open_pool() if self._has_compression_worker else None

    def decode_gone(self) -> None:
        """Note that a step could not be sent."""
        self._has_decode_worker = False

    def compression_started(self) -> OpenPool | None:
        """Note a compression worker's hello; returns what it is told, once there is a pool."""
        self._num_hellos += 1
        self._has_compression_worker = True
        self._is_open, self._unanswered = False, 0
        return self._open_pool() if self._has_decode_worker else None

    def compression_gone(self) -> None:
        """Note that a job could not be sent."""
        self._has_compression_worker = False

    def pool_opened(self) -> bool:
        """Note a `PoolOpened`; returns whether it is about the present pool."""
        self._unanswered -= 1
        if self._unanswered or not self._has_decode_worker:
            return False
        self._is_open = self._is_usable = True
        return True

    def _open_pool(self) -> OpenPool:
        self._unanswered += 1
        return OpenPool(self.export)
