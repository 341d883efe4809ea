"""Fills a decoder from the safetensors files of a checkpoint in the Hugging Face layout.

Files are memory-mapped and copied tensor by tensor into their place, so a checkpoint is never in memory twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open

from zipage.errors import ModelError
from zipage.models.checkpoint_files import weight_files
from zipage.models.config import ModelConfig
from zipage.models.decoder import Decoder
from zipage.models.layers import DecoderLayer, Projection

EMBEDDING = "model.embed_tokens.weight"
OUTPUT_EMBEDDING = "lm_head.weight"

# Old checkpoints store the RoPE frequencies, which the config determines.
IGNORED_SUFFIX = "rotary_emb.inv_freq"
SUPPORTED_TYPES = ("F32", "BF16", "F16")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a tensor of the checkpoint goes: a view of a parameter, and the shape that the checkpoint must have.

    The view is larger than the shape where one norm weight is repeated for every head, and `None` where the tensor is
    allowed but not needed.
    """

    view: torch.Tensor | None
    shape: tuple[int, ...]


def load_decoder(model_dir: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """Build the decoder of a checkpoint.

    Args:
        model_dir: directory with `model.safetensors`, or with shards and their index.
        config: of the same directory (`load_model_config`), possibly with a smaller `max_model_len`.
        dtype: of the decoder, whatever the checkpoint's is.
        device: of the decoder.

    Raises:
        ModelError: no safetensors files, a broken file, or tensors that do not fit `config`: missing, unexpected,
            twice there, of the wrong shape, or quantised. The message names the tensor.
    """
    files = weight_files(model_dir)
    decoder = Decoder(config, dtype, device)
    targets = checkpoint_targets(decoder)
    found: dict[str, Path] = {}
    for path in files:
        for name in _fill_from_file(path, targets):
            if name in found:
                raise ModelError(f"tensor {name} is in both {found[name]} and {path}")
            found[name] = path
    missing = [name for name, target in targets.items() if target.view is not None and name not in found]
    if missing:
        raise ModelError(f"{model_dir}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if config.tie_word_embeddings and OUTPUT_EMBEDDING in found:
        _check_tied(found[OUTPUT_EMBEDDING], decoder.embedding)
    return decoder


def checkpoint_targets(decoder: Decoder) -> dict[str, Target]:
    """The place of every tensor that the decoder's checkpoint may have, by its name there."""
    output = _whole(decoder.output_embedding)
    targets = {
        EMBEDDING: _whole(decoder.embedding),
        OUTPUT_EMBEDDING: Target(None, output.shape) if decoder.config.tie_word_embeddings else output,
        "model.norm.weight": _whole(decoder.final_norm.weight),
    }
    for index, layer in enumerate(decoder.layers):
        for name, target in _layer_targets(cast(DecoderLayer, layer), decoder.config):
            targets[f"model.layers.{index}.{name}"] = target
    return targets


def _layer_targets(layer: DecoderLayer, config: ModelConfig) -> Iterator[tuple[str, Target]]:
    yield "input_layernorm.weight", _whole(layer.attention_norm.weight)
    yield "post_attention_layernorm.weight", _whole(layer.feed_forward_norm.weight)
    query_size = config.num_query_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    qkv_sizes = {"q_proj": query_size, "k_proj": kv_size, "v_proj": kv_size}
    yield from _projection_targets("self_attn", layer.attention.qkv, qkv_sizes)
    yield from _projection_targets("self_attn", layer.attention.output, {"o_proj": config.hidden_size})
    if layer.attention.head_norm is not None:
        query_weight, key_weight = layer.attention.head_norm.weight.split((config.num_query_heads, config.num_kv_heads))
        yield "self_attn.q_norm.weight", Target(query_weight, (config.head_dim,))
        yield "self_attn.k_norm.weight", Target(key_weight, (config.head_dim,))
    gate_up_sizes = dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size)
    yield from _projection_targets("mlp", layer.feed_forward.gate_up, gate_up_sizes)
    yield from _projection_targets("mlp", layer.feed_forward.down, {"down_proj": config.hidden_size})


def _projection_targets(
    parent: str, projection: Projection, row_counts: dict[str, int]
) -> Iterator[tuple[str, Target]]:
    """Targets of projections that are stacked in one, in the order of `row_counts`."""
    for kind, parameter in (("weight", projection.weight), ("bias", projection.bias)):
        if parameter is not None:
            for name, rows in zip(row_counts, parameter.split(list(row_counts.values())), strict=True):
                yield f"{parent}.{name}.{kind}", _whole(rows)


def _whole(view: torch.Tensor) -> Target:
    return Target(view, tuple(view.shape))


def _fill_from_file(path: Path, targets: dict[str, Target]) -> list[str]:
    """Copy every tensor of a file to its target; the names of the targets that were found."""
    found = []
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():  # noqa: SIM118 (the file object is no mapping)
                if name.endswith(IGNORED_SUFFIX):
                    continue
                if name not in targets:
                    raise ModelError(f"{path}: tensor {name} is not part of the model that config.json describes")
                target = targets[name]
                _check_tensor(path, name, file.get_slice(name), target)
                if target.view is not None:
                    target.view.copy_(file.get_tensor(name))
                found.append(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}") from None
    return found


def _check_tensor(path: Path, name: str, stored: Any, target: Target) -> None:
    stored_type = stored.get_dtype()
    if stored_type not in SUPPORTED_TYPES:
        raise ModelError(
            f"{path}: tensor {name} has dtype {stored_type}, which must be one of {', '.join(SUPPORTED_TYPES)} "
            "(quantised checkpoints are not supported)"
        )
    shape = tuple(stored.get_shape())
    if shape != target.shape:
        raise ModelError(f"{path}: tensor {name} has shape {shape}, but config.json asks for {target.shape}")


def _check_tied(path: Path, embedding: torch.Tensor) -> None:
    """A tied checkpoint may store its one embedding twice, but not two different ones."""
    with safe_open(path, framework="pt", device="cpu") as file:
        stored = file.get_tensor(OUTPUT_EMBEDDING).to(embedding)
    if not torch.equal(stored, embedding):
        raise ModelError(
            f"{path}: tensor {OUTPUT_EMBEDDING} differs from {EMBEDDING}, but config.json has tie_word_embeddings true"
        )
