"""Requests without a query slot begin on spare blocks only where they can be expected to get one in time."""

import pytest
from small_cases import answer, make_scheduler, request, run_step

from zipage.scheduling.output_lengths import OutputLengths
from zipage.scheduling.request import Request
from zipage.scheduling.scheduler import Scheduler

EOS = 2
# Compressed at 48 entries; who has no slot stops at 44.
ONE_SLOT = {"num_query_slots": 1, "max_blocks_per_request": 6, "max_num_batched_tokens": 200}


def guaranteed(scheduler: Scheduler) -> dict[int, bool]:
    """By uid, whether each running request is guaranteed."""
    return {other.uid: other.is_guaranteed for other in scheduler.lives.running}


def of_length(num_output_tokens: int, max_tokens: int = 100) -> Request:
    message = request(0, 5, max_tokens=max_tokens)
    made = Request.from_message(message, 0, max_length=5 + max_tokens, max_blocks=0, now=0.0)
    made.token_ids += [7] * num_output_tokens
    return made


# ---- output lengths --------------------------------------------------------------------------------------------------


def test_shares_of_completions_by_their_lengths() -> None:
    lengths = OutputLengths(8)
    assert lengths.shares_reaching([]) == [1.0]
    for ended in (of_length(1), of_length(7), of_length(12, max_tokens=12), of_length(31)):
        lengths.note_end(ended)
    # Two of five end in the first eight tokens, then one is cut off, one has come to the third bin, and one ends.
    assert lengths.shares_reaching([of_length(16)]) == pytest.approx([1.0, 0.6, 0.6, 0.6, 0.0])
    assert lengths.num_noted == 4


def test_old_completions_are_forgotten() -> None:
    lengths = OutputLengths(8)
    for length in [1] * 100 + [20] * 512:
        lengths.note_end(of_length(length))
    assert lengths.shares_reaching([]) == [1.0, 1.0, 1.0, 0.0]


def test_requests_that_end_in_the_queue_are_no_completions() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add([request(0, 4), request(1, 4)], 0.0)
    run_step(scheduler)
    scheduler.abort([1], 0.0)
    assert scheduler.lives.lengths.num_noted == 0
    scheduler.abort([0], 0.0)
    assert scheduler.lives.lengths.num_noted == 1


# ---- who begins ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_tokens", "begins"), [(24, True), (25, False), (None, False)])
def test_a_request_begins_on_spare_blocks_if_a_slot_is_freed_before_it_needs_one(
    max_tokens: int | None, begins: bool
) -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    # The second may compute 24 tokens beside the first.
    scheduler.add([request(0, 30, max_tokens=max_tokens), request(1, 20)], 0.0)
    run_step(scheduler)
    assert guaranteed(scheduler) == ({0: True, 1: False} if begins else {0: True})


@pytest.mark.parametrize(("num_blocks", "begins"), [(11, True), (10, False)])
def test_it_does_not_begin_if_blocks_run_out_before(num_blocks: int, begins: bool) -> None:
    scheduler = make_scheduler(**ONE_SLOT, num_blocks=num_blocks)
    # They hold four and three blocks, and after 16 tokens six and five, of which the second gets its slot before.
    scheduler.add([request(0, 30, max_tokens=24), request(1, 18)], 0.0)
    run_step(scheduler)
    assert len(guaranteed(scheduler)) == 1 + begins


def test_those_that_have_begun_on_spare_blocks_get_their_slots_first() -> None:
    scheduler = make_scheduler(**ONE_SLOT, num_blocks=40)
    scheduler.add([request(0, 30, max_tokens=24), request(1, 20), request(2, 20)], 0.0)
    run_step(scheduler)
    assert guaranteed(scheduler) == {0: True, 1: False}


def test_a_request_begins_later_when_the_end_of_another_is_near_enough() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(0, 10, max_tokens=40), request(1, 20)], 0.0)
    while len(guaranteed(scheduler)) < 2:
        step = run_step(scheduler)
    # It is looked at again every eight steps.
    assert step.step_id == 16


@pytest.mark.parametrize(("num_early_ends", "begins"), [(0, False), (1, False), (2, True)])
def test_what_has_ended_of_late_is_expected_of_others(num_early_ends: int, begins: bool) -> None:
    scheduler = make_scheduler(**ONE_SLOT | {"num_query_slots": 2})
    for uid in range(100, 100 + num_early_ends):
        scheduler.add([request(uid, 20)], 0.0)
        step = scheduler.plan()
        scheduler.finish_step(answer(step, [step.work[0].row], token=EOS), 0.0)
    # With two of four that have ended in their first block of tokens, one of the two holders is expected to do so.
    scheduler.add([request(0, 30), request(1, 30), request(2, 20)], 0.0)
    run_step(scheduler)
    assert guaranteed(scheduler) == {0: True, 1: True} | ({2: False} if begins else {})


def test_requests_of_lower_classes_are_in_nobodys_way() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(0, 30, priority=1)], 0.0)
    run_step(scheduler)
    scheduler.add([request(1, 20), request(2, 20)], 0.0)
    run_step(scheduler)
    assert guaranteed(scheduler) == {1: False, 0: True}


def test_a_request_that_is_never_compressed_begins_wherever_blocks_are_free() -> None:
    scheduler = make_scheduler(**ONE_SLOT)
    scheduler.add([request(0, 30), request(1, 20, kv_budget=0)], 0.0)
    run_step(scheduler)
    assert guaranteed(scheduler) == {0: True, 1: False}
