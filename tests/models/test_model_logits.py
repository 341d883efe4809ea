"""Logits of the decoder against transformers' on tiny random checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dense_attention import dense_causal_attention
from tiny_models import FAMILIES, edit_config, reference_logits, reference_model, tiny_checkpoint

from zipage.models.config import load_model_config
from zipage.models.loading import load_decoder
from zipage.models.source import default_model

LENGTH = 40
TOLERANCE = 1e-4

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# With a base of 100 and these numbers of turns the ramp of YaRN has dimensions on both sides and between.
YARN_RAMP = YARN | {"beta_fast": 4.0, "beta_slow": 0.5, "rope_theta": 100.0}
ROPES = {
    "linear": LINEAR,
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-ramp": YARN_RAMP,
    "yarn-untruncated": YARN_RAMP | {"truncate": False},
    "yarn-attention-factor": YARN | {"attention_factor": 0.7},
    "yarn-mscale": YARN | {"mscale": 1.5, "mscale_all_dim": 0.6},
}


def tokens(vocab_size: int, length: int = LENGTH, seed: int = 1) -> list[int]:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def our_logits(path: Path, sequences: list[list[int]], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Logits at all positions of sequences that run as one flat batch."""
    decoder = load_decoder(path, load_model_config(path), dtype, "cpu")
    lengths = [len(sequence) for sequence in sequences]
    input_ids = torch.tensor([token_id for sequence in sequences for token_id in sequence])
    positions = torch.cat([torch.arange(length) for length in lengths])
    hidden = decoder(input_ids, positions, dense_causal_attention(lengths))
    return list(decoder.logits(hidden).split(lengths))


def assert_same_logits(path: Path) -> None:
    token_ids = tokens(load_model_config(path).vocab_size)
    (ours,) = our_logits(path, [token_ids])
    theirs = reference_logits(path, token_ids)
    assert ours.dtype == torch.float32
    assert ours.shape == theirs.shape
    # Logits that hardly vary would agree whatever the model does.
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < TOLERANCE


@pytest.mark.parametrize("tie_word_embeddings", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_family(tmp_path: Path, family: str, tie_word_embeddings: bool) -> None:
    assert_same_logits(tiny_checkpoint(tmp_path, family, tie_word_embeddings=tie_word_embeddings))


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("qwen3", {"attention_bias": True}),
        ("llama", {"head_dim": 24}),
        ("qwen2", {"head_dim": 24}),
        ("qwen3", {"head_dim": 24, "num_hidden_layers": 3}),
        ("qwen3", {"num_key_value_heads": 4}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("llama", {"rms_norm_eps": 0.3}),
        ("qwen3", {"rms_norm_eps": 0.3}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}),
    ],
)
def test_logits_with_option(tmp_path: Path, family: str, overrides: dict[str, Any]) -> None:
    assert_same_logits(tiny_checkpoint(tmp_path, family, **overrides))


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_logits_with_rope_scaling(tmp_path: Path, rope: dict[str, Any]) -> None:
    path = tiny_checkpoint(tmp_path, "llama", rope_parameters={"rope_theta": 10000.0} | rope)
    assert_same_logits(path)
    token_ids = tokens(128)
    (scaled,) = our_logits(path, [token_ids])
    plain_rope = {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    (plain,) = our_logits(edit_config(path, rope_parameters=plain_rope), [token_ids])
    assert (scaled - plain).abs().max() > 100 * TOLERANCE, "the scaling must show, or the comparison proves nothing"


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("rope", [LLAMA3, YARN_RAMP], ids=["llama3", "yarn"])
def test_logits_with_rope_scaling_in_qwen(tmp_path: Path, family: str, rope: dict[str, Any]) -> None:
    assert_same_logits(tiny_checkpoint(tmp_path, family, rope_parameters={"rope_theta": 10000.0} | rope))


@pytest.mark.parametrize("type_name", ["type", "rope_type"])
@pytest.mark.parametrize("rope", [LINEAR, LLAMA3, YARN], ids=["linear", "llama3", "yarn"])
def test_logits_with_old_rope_fields(tmp_path: Path, rope: dict[str, Any], type_name: str) -> None:
    path = tiny_checkpoint(tmp_path, rope_parameters={"rope_theta": 500.0} | rope)
    new_style = load_model_config(path)
    old_scaling = {(type_name if name == "rope_type" else name): value for name, value in rope.items()}
    edit_config(path, rope_parameters=..., rope_theta=500.0, rope_scaling=old_scaling)
    assert load_model_config(path) == new_style
    assert new_style.rope.scaling is not None
    assert_same_logits(path)


@pytest.mark.parametrize("theta", [None, 300.0])
def test_logits_without_rope_scaling_in_old_fields(tmp_path: Path, theta: float | None) -> None:
    path = edit_config(tiny_checkpoint(tmp_path), rope_parameters=..., rope_theta=theta or ..., rope_scaling=None)
    assert load_model_config(path).rope.theta == (theta or 10000.0)
    assert_same_logits(path)


def test_logits_of_sharded_checkpoint(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen3", max_shard_size="60KB")
    assert len(list(path.glob("model-*.safetensors"))) > 2
    assert_same_logits(path)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_logits_of_half_precision_checkpoint_in_float32(tmp_path: Path, stored: torch.dtype) -> None:
    path = tiny_checkpoint(tmp_path, "qwen2", dtype=stored)
    assert load_model_config(path).dtype == str(stored).removeprefix("torch.")
    assert_same_logits(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_bfloat16_are_as_close_to_float32_as_those_of_transformers(tmp_path: Path, family: str) -> None:
    path = tiny_checkpoint(tmp_path, family, dtype=torch.bfloat16)
    token_ids = tokens(128)
    exact = reference_logits(path, token_ids)
    (ours,) = our_logits(path, [token_ids], torch.bfloat16)
    with torch.inference_mode():
        theirs = reference_model(path, torch.bfloat16)(torch.tensor([token_ids])).logits[0].float()
    assert ours.dtype == torch.float32
    assert (ours - exact).square().mean() < 1.5 * (theirs - exact).square().mean()


def test_sequences_of_a_flat_batch_are_independent(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen3")
    sequences = [tokens(128, length, seed=length) for length in (7, 1, 23)]
    for sequence, ours in zip(sequences, our_logits(path, sequences), strict=True):
        assert (ours - reference_logits(path, sequence)).abs().max() < TOLERANCE


@torch.inference_mode()
def test_attention_sees_rotated_heads_of_the_documented_shapes(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen3", num_hidden_layers=3)
    decoder = load_decoder(path, load_model_config(path), torch.float32, "cpu")
    calls = []

    def attention(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        calls.append((layer, query.clone(), key.clone(), value.clone()))
        return torch.zeros_like(query)

    input_ids = torch.tensor([5, 5, 5])
    decoder(input_ids, torch.tensor([0, 1, 9]), attention)
    assert [layer for layer, *_ in calls] == [0, 1, 2]
    _, query, key, value = calls[0]
    assert query.shape == (3, 4, 16)
    assert key.shape == value.shape == (3, 2, 16)
    assert torch.equal(value[0], value[2])
    # The same token at other positions: rotated, hence different, but of the same length.
    for heads in (query, key):
        assert not torch.allclose(heads[0], heads[1])
        assert not torch.allclose(heads[1], heads[2])
        assert torch.allclose(heads[0].norm(dim=-1), heads[2].norm(dim=-1))


@torch.inference_mode()
def test_empty_batch(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen2")
    decoder = load_decoder(path, load_model_config(path), torch.float32, "cpu")
    nothing = torch.empty(0, dtype=torch.int64)
    hidden = decoder(nothing, nothing, lambda layer, query, key, value: query)
    assert decoder.logits(hidden).shape == (0, 128)


def test_logits_of_bundled_model() -> None:
    assert_same_logits(default_model())
