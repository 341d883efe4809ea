"""Which pool each worker has, whatever the order in which workers come and go."""

from msgspec.structs import replace
from small_pools import small_geometry

from zipage.engine_messages import OpenPool, PoolExport
from zipage.scheduling.handshake import PoolHandshake

EXPORT = PoolExport(geometry=small_geometry(), device="cpu", max_model_len=100, vocab_size=10)
OTHER = replace(EXPORT, max_model_len=50)


def opened() -> PoolHandshake:
    """Both workers are there."""
    workers = PoolHandshake(EXPORT)
    assert workers.compression_started() == OpenPool(EXPORT)
    assert not workers.takes_steps
    assert workers.pool_opened()
    assert sends(workers) == (True, True)
    return workers


def sends(workers: PoolHandshake) -> tuple[bool, bool]:
    return workers.takes_steps, workers.takes_jobs


def test_at_the_start_nothing_is_sent_before_both_have_the_pool() -> None:
    workers = PoolHandshake(EXPORT)
    assert sends(workers) == (False, False)
    workers.compression_started()
    assert sends(workers) == (False, False)
    assert opened().restarts == 0


def test_steps_go_on_while_the_compression_worker_starts_again() -> None:
    workers = opened()
    workers.compression_gone()
    assert sends(workers) == (True, False)
    # What it has done before is done.
    assert workers.takes_answers
    assert workers.compression_started() == OpenPool(EXPORT)
    assert sends(workers) == (True, False)
    assert not workers.takes_answers
    assert workers.pool_opened()
    assert sends(workers) == (True, True)
    assert workers.restarts == 1


def test_a_new_pool_before_the_new_compression_worker() -> None:
    workers = opened()
    workers.decode_gone()
    assert not workers.takes_steps
    # The old worker may not have died yet, and then it opens the pool too.
    assert workers.decode_started(OTHER) == OpenPool(OTHER)
    assert sends(workers) == (False, False)
    assert workers.compression_started() == OpenPool(OTHER)
    assert sends(workers) == (False, False)
    assert workers.pool_opened()
    assert sends(workers) == (True, True)
    assert workers.restarts == 2


def test_a_new_pool_after_the_new_compression_worker_takes_the_place_of_the_old_one() -> None:
    workers = opened()
    assert workers.compression_started() == OpenPool(EXPORT)
    assert workers.decode_started(OTHER) == OpenPool(OTHER)
    assert not workers.takes_answers
    # The answer about the pool that is gone.
    assert not workers.pool_opened()
    assert sends(workers) == (False, False)
    assert workers.pool_opened()
    assert sends(workers) == (True, True)


def test_the_pool_of_a_dead_decode_worker_is_not_opened_any_more() -> None:
    workers = opened()
    workers.decode_gone()
    assert workers.compression_started() is None
    assert workers.decode_started(OTHER) == OpenPool(OTHER)
    assert workers.pool_opened()
    assert sends(workers) == (True, True)


def test_a_pool_whose_decode_worker_dies_while_it_is_opened() -> None:
    workers = opened()
    workers.compression_started()
    workers.decode_gone()
    assert not workers.pool_opened()
    assert sends(workers) == (False, False)
    assert workers.decode_started(OTHER) == OpenPool(OTHER)
    assert workers.pool_opened()
    assert sends(workers) == (True, True)


def test_a_new_pool_is_not_sent_to_a_worker_that_has_gone() -> None:
    workers = opened()
    workers.compression_gone()
    assert workers.decode_started(OTHER) is None
    assert sends(workers) == (False, False)
    assert workers.compression_started() == OpenPool(OTHER)
