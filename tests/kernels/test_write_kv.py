"""The fused KV write against the model's own layers and kernels/reference.py."""

import pytest
import torch
import torch.nn.functional as F

from zipage.kernels import reference
from zipage.kernels.write_kv import write_kv
from zipage.models.rope import rotary_table, rotate
from zipage.models.rope_config import RopeConfig

EPS = 1e-5
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
NUM_BLOCKS = 7


def inputs_of(slots, num_heads, num_kv_heads, block_size, head_dim, dtype, device) -> dict[str, torch.Tensor]:
    """Random arguments of `write_kv` without norm; the cache is NaN everywhere."""
    torch.manual_seed(len(slots) + head_dim)
    qkv = torch.randn(len(slots), (num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype)
    cache = torch.full((NUM_BLOCKS, num_kv_heads, block_size, head_dim), torch.nan, dtype=dtype, device=device)
    return {
        "qkv": qkv,
        "key_cache": cache,
        "value_cache": cache.clone(),
        "slot_mapping": torch.tensor(slots, dtype=torch.int64, device=device),
        "positions": torch.randint(0, 300, (len(slots),), device=device),
        "rotary_table": rotary_table(RopeConfig(theta=1e4, scaling=None), head_dim, 300, dtype, device),
    }


def expected_results(inputs, norm_weight=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, key cache and value cache, computed in float32 from the same inputs and rounded at the end."""
    key_cache, value_cache = inputs["key_cache"].clone(), inputs["value_cache"].clone()
    _, num_kv_heads, _, head_dim = key_cache.shape
    heads = inputs["qkv"].unflatten(-1, (-1, head_dim)).float()
    rotated, value = heads[:, :-num_kv_heads], heads[:, -num_kv_heads:]
    if norm_weight is not None:
        rotated = F.rms_norm(rotated, (head_dim,), None, EPS) * norm_weight.float()
    cosines, sines = inputs["rotary_table"][inputs["positions"]].float()[:, None].chunk(2, dim=-1)
    query, key = (
        rotate(rotated, cosines, sines).to(key_cache.dtype).split((rotated.shape[1] - num_kv_heads, num_kv_heads), 1)
    )
    written = inputs["slot_mapping"] >= 0
    slots = inputs["slot_mapping"][written].long()
    reference.write_kv(key_cache, value_cache, key[written], value[written].to(key_cache.dtype), slots)
    return query, key_cache, value_cache


def assert_equal_to(expected, query, inputs) -> None:
    """Queries and keys within the dtype's rounding, values and everything unwritten the same bits."""
    tolerance = TOLERANCE[query.dtype]
    torch.testing.assert_close(query, expected[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(inputs["key_cache"], expected[1], atol=tolerance, rtol=tolerance, equal_nan=True)
    torch.testing.assert_close(inputs["value_cache"], expected[2], atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("is_normalised", [False, True])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "block_size", "head_dim", "dtype"),
    [
        (4, 2, 8, 64, torch.float32),
        (14, 2, 16, 80, torch.bfloat16),
        (3, 3, 32, 96, torch.float32),
        (16, 8, 16, 128, torch.bfloat16),
        (8, 1, 256, 256, torch.float16),
        (2, 1, 8, 16, torch.float32),
    ],
)
def test_equals_the_layers(num_heads, num_kv_heads, block_size, head_dim, dtype, is_normalised, device):
    slots = [5, 6 * block_size, block_size - 1, 3 * block_size + 2, 0, 4 * block_size]
    inputs = inputs_of(slots, num_heads, num_kv_heads, block_size, head_dim, dtype, device)
    norm = {}
    if is_normalised:
        weight = torch.rand(num_heads + num_kv_heads, head_dim, device=device).to(dtype) + 0.5
        norm = {"norm_weight": weight, "norm_eps": EPS}
    expected = expected_results(inputs, norm.get("norm_weight"))
    query = write_kv(**inputs, **norm)
    assert query.is_contiguous()
    assert_equal_to(expected, query, inputs)


def test_a_prefill_of_many_tokens(device):
    slots = torch.randperm(NUM_BLOCKS * 256)[:70].tolist()
    inputs = inputs_of(slots, 28, 1, 256, 16, torch.float32, device)
    expected = expected_results(inputs)
    assert_equal_to(expected, write_kv(**inputs), inputs)


def test_slot_minus_one_writes_no_key_and_no_value(device):
    inputs = inputs_of([-1, 9, -1, -1, 30], 4, 2, 8, 64, torch.float32, device)
    expected = expected_results(inputs)
    query = write_kv(**inputs)
    assert_equal_to(expected, query, inputs)
    assert (~inputs["key_cache"].isnan()).sum() == 2 * 2 * 64


def test_takes_strided_tokens_and_small_integers(device):
    inputs = inputs_of([3, 12, 20], 4, 2, 8, 64, torch.float32, device)
    expected = expected_results(inputs)
    wide = torch.full((3, 9 * 64), torch.nan, device=device)
    wide[:, 64:] = inputs["qkv"]
    inputs |= {
        "qkv": wide[:, 64:],
        "slot_mapping": inputs["slot_mapping"].int(),
        "positions": inputs["positions"].int(),
    }
    assert_equal_to(expected, write_kv(**inputs), inputs)


def test_zeroes_what_was_observed_of_the_places(device):
    inputs = inputs_of([3, -1, 12, 20], 4, 2, 8, 16, torch.float32, device)
    observed = torch.rand(NUM_BLOCKS, 2, 8, device=device) + 1
    expected = observed.clone()
    for slot in (3, 12, 20):
        expected[slot // 8, :, slot % 8] = 0
    write_kv(**inputs, observed=observed)
    assert torch.equal(observed, expected)


@pytest.mark.parametrize("rows", [[11, -1, 0, 6], [5, -1, -1, -1]])
def test_records_queries_as_they_are_returned(rows, device):
    inputs = inputs_of([3, -1, 12, 20], 4, 2, 8, 64, torch.bfloat16, device)
    slots = torch.full((3, 4, 4, 64), torch.nan, dtype=torch.bfloat16, device=device)
    recorded = torch.tensor(rows, device=device)
    expected = slots.clone()
    query = write_kv(**inputs, query_slots=slots, query_rows=recorded.int())
    reference.write_queries(expected, query[recorded >= 0], recorded[recorded >= 0])
    torch.testing.assert_close(slots, expected, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(query, write_kv(**inputs))


def test_writes_beyond_two_to_the_31_elements(device):
    block_size, head_dim = 256, 256
    num_blocks = (1 << 31) // (block_size * head_dim) + 2
    slot = num_blocks * block_size - 2
    inputs = inputs_of([slot], 2, 1, block_size, head_dim, torch.bfloat16, device)
    expected = expected_results(
        inputs | {"slot_mapping": inputs["slot_mapping"] - (num_blocks - NUM_BLOCKS) * block_size}
    )
    # Only what is written takes memory on a CPU.
    cache = torch.empty(num_blocks, 1, block_size, head_dim, dtype=torch.bfloat16, device=device)
    cache[-1] = torch.nan
    # One cache for both: what remains are the values.
    write_kv(**(inputs | {"key_cache": cache, "value_cache": cache}))
    torch.testing.assert_close(cache[-1], expected[2][-1], atol=0, rtol=0, equal_nan=True)


def test_no_tokens(device):
    inputs = inputs_of([], 4, 2, 8, 16, torch.float32, device)
    assert write_kv(**inputs).shape == (0, 4, 16)
    assert inputs["key_cache"].isnan().all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qkv", lambda inputs: {"qkv": inputs["qkv"][:, :-1]}),
        ("qkv", lambda inputs: {"qkv": inputs["qkv"][0]}),
        ("qkv", lambda inputs: {"qkv": inputs["qkv"][:, : 4 * 16]}),
        ("key_cache", lambda inputs: {"key_cache": inputs["key_cache"].transpose(0, 1)}),
        ("key_cache", lambda inputs: {"qkv": inputs["qkv"].half()}),
        ("value_cache", lambda inputs: {"value_cache": inputs["value_cache"][1:]}),
        ("slot_mapping", lambda inputs: {"slot_mapping": inputs["slot_mapping"][1:]}),
        ("positions", lambda inputs: {"positions": inputs["positions"].float()}),
        ("rotary_table", lambda inputs: {"rotary_table": inputs["rotary_table"][:, 2:]}),
        ("norm_weight", lambda inputs: {"norm_weight": inputs["rotary_table"]}),
        ("observed", lambda inputs: {"observed": inputs["rotary_table"]}),
        ("query_rows", lambda inputs: {"query_rows": inputs["positions"]}),
        ("query_slots", lambda inputs: {"query_slots": torch.zeros(2, 3, 2, 16), "query_rows": inputs["positions"]}),
        (
            "query_slots",
            lambda inputs: {"query_slots": torch.zeros(2, 3, 4, 16).half(), "query_rows": inputs["positions"]},
        ),
        ("query_rows", lambda inputs: {"query_slots": torch.zeros(2, 3, 4, 16), "query_rows": inputs["positions"][1:]}),
    ],
)
def test_wrong_arguments_are_named(name, change, device):
    inputs = inputs_of([3, 12], 4, 2, 8, 16, torch.float32, device)
    with pytest.raises(ValueError, match=name):
        write_kv(**(inputs | change(inputs)))
