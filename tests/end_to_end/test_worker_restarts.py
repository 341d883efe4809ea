"""A real engine whose workers are killed under load: it starts them again, and every answer is exact all the same.

All answers are those of tasks of the bundled model, known to the last character.
"""

import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_helpers import wait_until

from tools.bundled_task import samples
from zipage import Client, SamplingParams, restarts
from zipage.llm import make_config
from zipage.messages import Status
from zipage.supervisor import Supervisor

pytestmark = pytest.mark.usefixtures("engine_directory")

GREEDY = SamplingParams(temperature=0.0)
OPTIONS = {"device": "cpu", "threads": 1, "max_num_seqs": 8, "max_num_batched_tokens": 64}
# Answers of some 290 tokens; with a budget of 160 default scoring gives them exactly.
CHARACTERS = 280
BUDGET = 160
# A block of 16 tokens with its scores, and its share of the query slots.
BLOCK_GB = 0.00028
SECONDS = 120.0


@pytest.fixture(autouse=True)
def always_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """No end of a worker that was ready counts as a failure, however fast this machine is."""
    monkeypatch.setattr(restarts, "STEADY_SECONDS", 0.0)


class Load:
    """Tasks that a thread of its own has answered meanwhile."""

    def __init__(self, supervisor: Supervisor, count: int, seed: int, params: SamplingParams = GREEDY) -> None:
        self._tasks = samples(count, CHARACTERS, seed)
        self._answers: list[str] = []
        self._supervisor = supervisor
        self._params = params
        self._thread = threading.Thread(target=self._generate, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """All answers have come, and are exact."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        assert self._answers == [task.text for task in self._tasks]

    def _generate(self) -> None:
        with Client(self._supervisor.address, check=self._supervisor.check) as client:
            results = client.chat([task.messages for task in self._tasks], self._params)
            self._answers += [result.text for result in results]


@contextmanager
def engine(num_blocks: int, spares: Collection[str] = (), **options: object) -> Iterator[tuple[Supervisor, Client]]:
    """An engine whose pool has about `num_blocks` blocks of 16 tokens; it has to be idle and sound at the end."""
    config = make_config(None, {**OPTIONS, "kv_cache_gb": num_blocks * BLOCK_GB, **options})
    with (
        Supervisor.start(config, spares=spares) as supervisor,
        Client(supervisor.address, check=supervisor.check) as client,
    ):
        yield supervisor, client
        assert wait_until(lambda: client.status().blocks_used == 0, SECONDS)
        status = client.status()
        assert status.integrity_errors == []
        assert (status.running, status.waiting, status.swapped, status.slots_used, status.host_blocks_used) == (0,) * 5


def kill(supervisor: Supervisor, worker: str) -> None:
    restarts = supervisor.restarts[worker]
    os.kill(supervisor.processes[worker], signal.SIGKILL)
    assert wait_until(lambda: supervisor.restarts[worker] == restarts + 1), supervisor.failure


def wait_for_compressions(client: Client, more_than: int) -> Status:
    assert wait_until(lambda: client.status().compressions > more_than, SECONDS)
    return client.status()


@pytest.mark.parametrize("compress", ["always", "pressure"])
def test_sigkill_under_load(compress: str) -> None:
    with engine(50, kv_budget=BUDGET, compress=compress, shadow_share=0.3) as (supervisor, client):
        for worker in ("compression", "decode"):
            before, compressions = supervisor.restarts, client.status().compressions
            load = Load(supervisor, count=5, seed=31)
            wait_for_compressions(client, compressions)
            kill(supervisor, worker)
            load.check()
            restarted = {name for name, count in supervisor.restarts.items() if count > before[name]}
            assert restarted == {worker, "compression"}


def test_sigkill_of_every_restarted_worker_that_has_served() -> None:
    with engine(75, kv_budget=BUDGET) as (supervisor, client):
        for worker in ("compression", "decode"):
            compressions = client.status().compressions
            load = Load(supervisor, count=8, seed=32)
            for _ in range(3):
                compressions = wait_for_compressions(client, compressions).compressions
                kill(supervisor, worker)
            load.check()
            assert supervisor.restarts[worker] == 3


def test_a_spare_takes_over_under_load() -> None:
    with engine(50, spares=["compression"], kv_budget=BUDGET) as (supervisor, client):
        for restart in (1, 2):
            compressions = client.status().compressions
            load = Load(supervisor, count=5, seed=38)
            spare = wait_for_prepared_spare(supervisor, other_than=supervisor.processes["compression"])
            wait_for_compressions(client, compressions)
            kill(supervisor, "compression")
            assert supervisor.processes["compression"] == spare
            load.check()
            assert client.status().worker_restarts == restart
        assert {name for name, count in supervisor.restarts.items() if count} == {"compression"}


def wait_for_prepared_spare(supervisor: Supervisor, other_than: int) -> int:
    """The id of a spare that has loaded what a compression worker on a GPU needs, and no device."""

    def mapped() -> str:
        spare = supervisor.spares.get("compression")
        return Path(f"/proc/{spare}/maps").read_text() if spare not in (None, other_than) else ""

    assert wait_until(lambda: "libtorch" in (maps := mapped()) and "libtriton" in maps)
    assert "/dev/nvidia" not in mapped()
    return supervisor.spares["compression"]


def test_sigkill_of_both_workers_at_once() -> None:
    with engine(50, kv_budget=BUDGET) as (supervisor, client):
        load = Load(supervisor, count=4, seed=33)
        wait_for_compressions(client, 0)
        for worker in ("compression", "decode"):
            os.kill(supervisor.processes[worker], signal.SIGKILL)
        load.check()
        assert supervisor.restarts["decode"] == 1


def test_sigkill_of_decode_without_a_budget() -> None:
    with engine(120) as (supervisor, client):
        load = Load(supervisor, count=3, seed=34)
        assert wait_until(lambda: client.status().output_tokens > 30, SECONDS)
        kill(supervisor, "decode")
        load.check()


@pytest.mark.parametrize("worker", ["compression", "decode"])
def test_swapped_requests_outlive_the_workers(worker: str) -> None:
    with engine(13, kv_budget=BUDGET) as (supervisor, client):
        patient = Load(supervisor, count=1, seed=35)
        wait_for_compressions(client, 0)
        urgent = Load(supervisor, count=1, seed=36, params=SamplingParams(temperature=0.0, priority=-1))
        assert wait_until(lambda: client.status().swapped == 1, SECONDS)
        kill(supervisor, worker)
        urgent.check()
        patient.check()
        assert client.status().swaps == 1


def test_an_idle_engine_goes_on_after_its_workers_were_killed() -> None:
    with engine(50, kv_budget=BUDGET) as (supervisor, _):
        Load(supervisor, count=1, seed=37).check()
        for worker in ("compression", "decode"):
            kill(supervisor, worker)
            Load(supervisor, count=1, seed=37).check()
