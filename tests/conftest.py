"""What every process of the tests inherits: one thread for torch, an interrupt that interrupts, and where kernels run.

Threads of one process that wait for each other at barriers come to a crawl where other processes want the same cores. A
shell that starts pytest in the background makes it ignore interrupts, and with it every engine that a test interrupts.
Kernels run natively on a CUDA device, elsewhere on the CPU by Triton's interpreter. Triton looks at the variable when
it is imported, so it must be set before anything imports it.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from process_helpers import children_of, leftovers, short_temporary_directory, wait_until

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from triton_interpreter import remember_builtins

    remember_builtins()


@pytest.fixture
def engine_directory(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runtime directories are made in here, and the test has to leave it empty and unused, and no child unreaped."""
    # pytest's own folder is not to be made in there.
    tmp_path_factory.getbasetemp()
    with short_temporary_directory() as directory:
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        monkeypatch.setenv("TMPDIR", str(directory))
        descriptors = os.listdir("/proc/self/fd")
        yield directory
        assert wait_until(lambda: not leftovers(directory)), leftovers(directory)
        assert not children_of(os.getpid()), "not reaped"
        assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """Where sockets can be bound."""
    with short_temporary_directory() as directory:
        yield directory
