"""Notes of requests whose entries may be lost, through kills and restarts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipage.eviction.journal import CAPACITY, Journal

# Notes two more requests all the time, and takes back what is older than ten pairs.
ENDLESS_WRITER = """
import itertools, sys
from zipage.eviction.journal import Journal
journal = Journal(int(sys.argv[1]))
for number in itertools.count(1):
    journal.note([2 * number, 2 * number + 1])
    if number > 10:
        journal.forget(2 * number - 20)
        journal.forget(2 * number - 19)
    if number == 20:
        print("writing", flush=True)
"""


@pytest.fixture
def memory_file() -> Iterator[int]:
    descriptor = os.memfd_create("test")
    yield descriptor
    os.close(descriptor)


def test_an_empty_file_is_an_empty_journal(memory_file: int) -> None:
    assert Journal(memory_file).uids == []


def test_the_next_process_finds_the_notes(memory_file: int) -> None:
    journal = Journal(memory_file)
    journal.note([5, 3])
    journal.note([9, 1 << 40])
    journal.forget(9)
    assert Journal(memory_file).uids == [5, 3, 1 << 40]


def test_notes_stay_until_they_are_taken_back(memory_file: int) -> None:
    Journal(memory_file).note([5, 3])
    after = Journal(memory_file)
    after.note([8])
    after.forget(5)
    after.forget(6)
    assert Journal(memory_file).uids == [3, 8]


def test_the_oldest_notes_make_room_for_new_ones(memory_file: int) -> None:
    journal = Journal(memory_file)
    journal.note(range(CAPACITY))
    journal.note([1, CAPACITY])
    assert Journal(memory_file).uids == [*range(2, CAPACITY), 1, CAPACITY]


def test_a_process_without_a_file_keeps_notes_to_itself() -> None:
    journal = Journal(None)
    journal.note([4])
    assert journal.uids == [4]
    assert Journal(None).uids == []


def test_a_successor_knows_that_it_is_one(memory_file: int) -> None:
    assert not Journal(memory_file).has_predecessor
    assert Journal(memory_file).has_predecessor
    assert not Journal(None).has_predecessor


@given(st.lists(st.one_of(st.lists(st.integers(0, 12), unique=True, max_size=4), st.integers(0, 12))))
def test_what_is_read_is_what_was_noted_and_not_taken_back(changes: list[list[int] | int]) -> None:
    descriptor = os.memfd_create("test")
    journal, expected = Journal(descriptor), []
    for change in changes:
        gone = change if isinstance(change, list) else [change]
        expected = [uid for uid in expected if uid not in gone]
        if isinstance(change, list):
            journal.note(change)
            expected += change
        else:
            journal.forget(change)
        assert journal.uids == Journal(descriptor).uids == expected
    os.close(descriptor)


@pytest.mark.parametrize("attempt", range(4))
def test_a_kill_leaves_a_whole_list(memory_file: int, attempt: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS_WRITER, str(memory_file)], stdout=subprocess.PIPE, pass_fds=[memory_file]
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    uids = Journal(memory_file).uids
    # Ten or eleven pairs in a row, or half a pair less at the beginning.
    assert uids == list(range(uids[0], uids[0] + len(uids)))
    assert uids[-1] % 2 == 1
    assert 20 <= len(uids) <= 22
