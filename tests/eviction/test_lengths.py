"""Lengths of rows of scores, and how much memory they allow at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_pools import small_geometry

from zipage.config import EngineConfig
from zipage.engine_messages import PoolExport
from zipage.eviction.lengths import length_class, length_classes, longest_compression, row_length
from zipage.eviction.scratch import layers_at_once, requests_at_once


@given(st.integers(1, 200_000), st.integers(0, 5000))
def test_every_length_has_a_row_and_a_class_that_is_compiled(num_entries: int, more: int) -> None:
    length = row_length(num_entries)
    assert num_entries <= length <= length_class(num_entries)
    assert length % 16 == 0
    assert length_class(num_entries) in length_classes(num_entries + more)
    assert length_class(length) == length_class(num_entries)


def test_classes() -> None:
    assert [length_class(number) for number in (1, 512, 513, 1024, 2049)] == [512, 512, 1024, 1024, 4096]
    assert length_classes(2049) == [512, 1024, 2048, 4096]
    assert length_classes(512) == [512]


def export(num_blocks: int = 1000, max_model_len: int = 100_000) -> PoolExport:
    return PoolExport(small_geometry(num_blocks=num_blocks), "cpu", max_model_len, 100)


@pytest.mark.parametrize(
    ("options", "exported", "expected"),
    [
        ({}, export(), 1008 + 496),
        ({}, export(num_blocks=70), 70 * 16),
        ({}, export(max_model_len=1100), 1100),
        ({"compress": "pressure"}, export(), 16_000),
        ({"compress": "pressure"}, export(max_model_len=9000), 9000),
    ],
)
def test_the_longest_compression(options: dict, exported: PoolExport, expected: int) -> None:
    config = EngineConfig(model="m", kv_budget=1000, block_size=16, max_num_batched_tokens=500, **options)
    assert longest_compression(config, exported) == expected


@given(st.integers(1, 10_000), st.integers(1, 50), st.integers(1, 1_000_000))
def test_what_is_done_at_a_time_fits(bytes_of_layer: int, num_requests: int, limit: int) -> None:
    requests = min(num_requests, requests_at_once(bytes_of_layer, limit))
    layers = layers_at_once(bytes_of_layer, requests, limit)
    assert requests >= 1
    assert layers >= 1
    assert requests * layers * bytes_of_layer <= limit or requests == layers == 1
    assert requests == num_requests or (requests + 1) * bytes_of_layer > limit
