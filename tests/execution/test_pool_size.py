"""How a pool is split into blocks, query slots and query buffers, in exact numbers."""

import pytest

from tools.simulation.shapes import SHAPES
from zipage.config import EngineConfig, parse_scoring
from zipage.engine_messages import PoolGeometry
from zipage.errors import ConfigError
from zipage.execution.pool_size import GIB, choose_geometry
from zipage.scheduling.limits import SchedulerLimits

# 36 layers and 8 KV heads of 128 entries, each with a key and a value of 128 bfloat16 and a float32 score.
BLOCK = 36 * 8 * 128 * (2 * 128 * 2 + 4)
# 16 queries of 32 heads.
BUFFER = 36 * 16 * 32 * 128 * 2
REQUEST = 4 * BLOCK + BUFFER


def geometry(pool_bytes: int, swap_bytes: int = 0, **options: object) -> PoolGeometry:
    """That of an engine with blocks of 128 tokens, a budget of four, and the shape of Qwen3-8B."""
    fields = {"kv_budget": 512, "block_size": 128, "scoring": parse_scoring("paper"), "shadow_share": 0.1} | options
    config = EngineConfig(model="m", **fields)
    return choose_geometry(config, SHAPES["qwen3-8b"], "bfloat16", pool_bytes, swap_bytes)


def sizes(pool_bytes: int, **options: object) -> tuple[int, int, int]:
    """Query slots, spare query buffers, and blocks."""
    chosen = geometry(pool_bytes, **options)
    return chosen.num_query_slots, chosen.num_query_buffers - chosen.num_query_slots, chosen.num_blocks


def test_ten_gib_of_an_8b_model_hold_132_requests_of_512_tokens() -> None:
    # A tenth of 531 blocks is room for 17 jobs of three blocks, of whose buffers 132 requests leave room for 15.
    assert (10 * GIB - 132 * BUFFER) // BLOCK == 531
    assert (10 * GIB - 132 * REQUEST) // BUFFER == 15
    assert sizes(10 * GIB) == (132, 15, (10 * GIB - 147 * BUFFER) // BLOCK) == (132, 15, 528)


@pytest.mark.parametrize(
    ("pool_bytes", "options", "expected"),
    [
        # The slots take all, and 11 of 40 blocks are room for three jobs, two of which have to have a buffer.
        (10 * REQUEST + 2 * BUFFER, {"shadow_share": 0.28}, (10, 2, 40)),
        (10 * REQUEST + 2 * BUFFER - 1, {"shadow_share": 0.28}, (9, 3, 39)),
        (10 * REQUEST + 3 * BUFFER, {"shadow_share": 0.28}, (10, 3, 40)),
        (10 * REQUEST + 7 * BUFFER, {"shadow_share": 0.28}, (10, 3, 40)),
        # Requests of a smaller budget of their own may find the blocks that those of the engine's budget do not.
        (10 * REQUEST + BUFFER, {"shadow_share": 0.03}, (10, 1, 40)),
        (10 * REQUEST + BUFFER, {"shadow_share": 0.02}, (10, 0, 40)),
        (10 * REQUEST + BUFFER, {"shadow_share": 0.0}, (10, 0, 40)),
        (10 * REQUEST + BUFFER, {"shadow_share": 0.28, "overlap": False}, (10, 0, 40)),
        # Never more spare buffers than slots.
        (10 * REQUEST, {"max_num_seqs": 2, "shadow_share": 1.0}, (2, 2, 41)),
        # Only one request fits, which can be compressed in stall mode.
        (REQUEST, {"shadow_share": 1.0}, (1, 0, 4)),
        (REQUEST + BUFFER, {"shadow_share": 1.0}, (1, 1, 4)),
        # No request outgrows its budget.
        (10 * BLOCK, {"max_model_len": 512}, (0, 0, 10)),
    ],
)
def test_slots_go_before_half_of_the_spare_buffers(
    pool_bytes: int, options: dict, expected: tuple[int, int, int]
) -> None:
    assert sizes(pool_bytes, **options) == expected


@pytest.mark.parametrize("shadow_share", [0.0, 0.1, 0.5, 1.0])
def test_all_slot_holders_have_their_blocks_and_buffers_together(shadow_share: float) -> None:
    for pool_bytes in range(REQUEST, 40 * REQUEST, REQUEST // 3):
        chosen = geometry(pool_bytes, shadow_share=shadow_share)
        assert chosen.num_blocks >= 4 * chosen.num_query_slots
        assert chosen.num_blocks * BLOCK + chosen.num_query_buffers * BUFFER <= pool_bytes


def test_accumulated_attention_needs_no_buffers() -> None:
    chosen = geometry(10 * GIB, scoring=parse_scoring("default,observe=all"))
    block_bytes = BLOCK + 36 * 8 * 128 * 4
    assert (chosen.window, chosen.num_query_slots) == (0, 10 * GIB // (4 * block_bytes))
    assert (chosen.num_query_buffers, chosen.num_blocks) == (chosen.num_query_slots, 10 * GIB // block_bytes)


def test_a_swapped_request_has_one_buffer_in_host_memory() -> None:
    chosen = geometry(10 * GIB, swap_bytes=5 * REQUEST)
    assert (chosen.num_host_slots, chosen.num_host_blocks) == (5, 20)


def test_a_pool_without_room_for_one_request_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0.0753 GiB does not hold one request of 4 blocks \(0.0753 GiB\)"):
        geometry(REQUEST - 1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 52), ({"scoring": parse_scoring("paper,observe=all")}, 0), ({"overlap": False}, 0)],
)
def test_the_scheduler_has_the_shadow_blocks_that_buffers_were_counted_for(options: dict, expected: int) -> None:
    fields = {"kv_budget": 512, "block_size": 128, "scoring": parse_scoring("paper")} | options
    config = EngineConfig(model="m", **fields)
    limits = SchedulerLimits.from_config(config, geometry(10 * GIB, **fields), 4096)
    assert limits.max_shadow_blocks == expected


def test_without_a_budget_no_shadow_blocks_are_left_free() -> None:
    config = EngineConfig(model="m", block_size=128)
    limits = SchedulerLimits.from_config(config, geometry(10 * GIB, kv_budget=0), 4096)
    assert (limits.num_query_slots, limits.num_query_buffers, limits.max_shadow_blocks) == (0, 0, 0)
