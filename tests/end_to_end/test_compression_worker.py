"""A compression worker that is killed, and what its successor finds: the pool, swapped requests, and the journal."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import torch
import zmq
from process_helpers import short_temporary_directory
from small_pools import small_geometry

from zipage.config import EngineConfig
from zipage.engine_messages import (
    CompressionCommand,
    CompressionDone,
    CompressionJob,
    CompressionWorkerMessage,
    OpenPool,
    PoolExport,
    PoolOpened,
    SwapDone,
    SwapIn,
    SwapOut,
)
from zipage.execution.pool import KVPool, allocate_on_host
from zipage.links import control_address
from zipage.workers.process import CONFIG_FILE

GEOMETRY = small_geometry(
    num_layers=2,
    num_blocks=16,
    block_size=8,
    num_query_heads=2,
    num_query_slots=2,
    num_query_buffers=4,
    window=16,
    num_host_blocks=6,
    num_host_slots=2,
)
LIFELINE, POOL, SWAP, JOURNAL = "LIFELINE", "POOL", "SWAP", "JOURNAL"


@dataclass
class Engine:
    """What the scheduler, the decode worker and the supervisor are to a compression worker."""

    runtime_dir: Path
    descriptors: dict[str, int]
    pool: KVPool
    context: zmq.Context

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen]:
        """Start one, on a link of its own: messages to a worker that is gone must not wait for the next."""
        environment = {f"ZIPAGE_{name}_FD": str(descriptor) for name, descriptor in self.descriptors.items()}
        with self.context.socket(zmq.DEALER) as self.link:
            self.link.bind(f"ipc://{self.runtime_dir}/compression")
            process = subprocess.Popen(
                [sys.executable, "-m", "zipage.workers.compression", str(self.runtime_dir)],
                env=os.environ | environment,
                pass_fds=list(self.descriptors.values()),
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def open_pool(self) -> list[int]:
        """Have a worker that has just started open the pool; returns what it reports as unfinished."""
        self.send(OpenPool(PoolExport(GEOMETRY, "cpu", 1000, 100)))
        while not isinstance(answer := self.receive(), PoolOpened):
            pass
        return answer.unfinished

    def send(self, *messages: CompressionCommand) -> None:
        for message in messages:
            self.link.send(msgspec.msgpack.encode(message))

    def receive(self) -> CompressionWorkerMessage:
        assert self.link.poll(60_000)
        return msgspec.msgpack.decode(self.link.recv(), type=CompressionWorkerMessage)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with short_temporary_directory() as runtime_dir, zmq.Context() as context:
        config = EngineConfig(model="m", kv_budget=32, block_size=8)
        (runtime_dir / CONFIG_FILE).write_bytes(msgspec.json.encode(config))
        lifeline, lifeline_end = os.pipe()
        files = {name: os.memfd_create(name) for name in (POOL, SWAP, JOURNAL)}
        pool = allocate_on_host(GEOMETRY, files[POOL])
        for tensor in (pool.keys, pool.values, pool.queries):
            tensor.normal_()
        context.setsockopt(zmq.LINGER, 0)
        with context.socket(zmq.PULL) as control:
            control.bind(control_address(runtime_dir))
            yield Engine(runtime_dir, {LIFELINE: lifeline} | files, pool, context)
        for descriptor in (lifeline, lifeline_end, *files.values()):
            os.close(descriptor)


def compression(uid: int, table: list[int], targets: list[int]) -> CompressionJob:
    return CompressionJob(uid, table, targets, 32, 0, 0, 0, query_buffer=uid, keep=24)


def test_a_killed_worker_leaves_what_its_successor_needs(engine: Engine) -> None:
    with engine.worker() as worker:
        assert engine.open_pool() == []
        engine.send(compression(1, [0, 1, 2, 3], [0, 1, 2]), compression(2, [4, 5, 6, 7], [8, 9, 10]))
        answers = [engine.receive() for _ in range(2)]
        assert sorted(answers, key=lambda answer: answer.uid) == [CompressionDone(1, 0), CompressionDone(2, 0)]
        engine.send(SwapOut(2, [8, 9, 10], 2, [3, 0, 5], 1))
        assert engine.receive() == SwapDone(2)
        saved = engine.pool.keys[:, [8, 9, 10]].clone()
        worker.kill()
    engine.pool.keys.zero_()
    with engine.worker() as successor:
        # The copy to other blocks left its source whole; the other job's answer might have been lost.
        assert engine.open_pool() == [1]
        engine.send(SwapIn(2, [12, 13, 11], 3, [3, 0, 5], 1))
        assert engine.receive() == SwapDone(2)
        assert torch.equal(engine.pool.keys[:, [12, 13, 11]], saved)
        successor.send_signal(signal.SIGTERM)
        assert successor.wait(60) == 0
