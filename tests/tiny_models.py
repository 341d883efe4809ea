"""Tiny random checkpoints of the supported families, written by transformers itself."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

FAMILIES = ("llama", "qwen2", "qwen3")

_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_checkpoint(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    std: float = 0.2,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str | None = None,
    **config_overrides: Any,
) -> Path:
    """Write a checkpoint with random weights: config.json, generation_config.json and safetensors.

    Weights and biases are normal with standard deviation `std`, large enough that every part of the model shows in the
    logits; norm weights are normal around 1.

    Args:
        path: directory to write to; made where it is missing.
        family: `llama`, `qwen2` or `qwen3`; the head size is 16 unless `head_dim` says otherwise.
        seed: of the weights.
        std: of weights and biases.
        dtype: of the stored weights, and `dtype` of config.json.
        max_shard_size: splits the weights into shards of at most this size, for example "50KB".
        config_overrides: fields of transformers' configuration class, for example `num_hidden_layers=3`,
            `tie_word_embeddings=True`, `attention_bias=True`, `head_dim=32`, or
            `rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}`.

    Returns:
        `path`.
    """
    config_class, model_class = _CLASSES[family]
    fields = _DEFAULTS | ({"head_dim": 16} if family == "qwen3" else {}) | config_overrides
    model = model_class(config_class(**fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(mean, std, generator=generator)
    shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    model.to(dtype).save_pretrained(path, **shards)
    return path


def reference_model(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def reference_logits(path: Path, token_ids: list[int]) -> torch.Tensor:
    """Logits of one sequence at all of its positions as transformers computes them, [T, vocab] float32."""
    with torch.inference_mode():
        return reference_model(path)(torch.tensor([token_ids])).logits[0]


def edit_config(path: Path, **changes: Any) -> Path:
    """Change fields of a checkpoint's config.json; `...` removes one. Returns `path`."""
    file = path / "config.json"
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    return path
