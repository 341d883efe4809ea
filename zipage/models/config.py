"""What config.json and generation_config.json of a checkpoint say, checked once. Imports no torch."""

from pathlib import Path
from typing import Literal

import msgspec

from zipage.errors import ModelError
from zipage.models.fields import JsonFields, read_fields
from zipage.models.rope_config import RopeConfig, parse_rope, scaled_max_positions

Family = Literal["llama", "qwen2", "qwen3"]
CheckpointDType = Literal["float32", "bfloat16", "float16"]

ARCHITECTURES: dict[str, Family] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
CHECKPOINT_DTYPES: dict[str, CheckpointDType] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
QWEN3_HEAD_DIM = 128


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a decoder.

    Attributes:
        family: which of the supported architectures it is.
        max_model_len: most positions of one sequence, in tokens: `max_position_embeddings`, extended by RoPE scaling
            (`rope_config.scaled_max_positions` says how). The decoder's RoPE table has this many rows.
        attention_bias: the query, key and value projections have a bias.
        attention_output_bias: the attention output projection has a bias.
        mlp_bias: the three feed-forward projections have a bias.
        qk_norm: queries and keys are RMS-normalised, each head by itself, before RoPE.
        dtype: of the weights, `float32` where the checkpoint does not say.
        bos_token_id: where the model has one.
        eos_token_ids: tokens that end a sequence; may be empty.
    """

    family: Family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    dtype: CheckpointDType
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """The sampling fields of generation_config.json; `None` where the file does not set one.

    `do_sample` false means greedy decoding whatever the other fields say. `eos_token_ids` are not checked against the
    vocabulary, which the file does not know.
    """

    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    eos_token_ids: tuple[int, ...] | None = None


def load_model_config(model_dir: Path) -> ModelConfig:
    """Read and check `config.json`.

    Absent optional fields have the defaults of transformers' configuration classes.

    Raises:
        ModelError: the file is missing or broken, the architecture or a feature is unsupported, or a field is missing
            or outside its range; the message names the field and its value.
    """
    fields = read_fields(model_dir / "config.json")
    family = _family(fields)
    _refuse_unsupported(fields)
    num_query_heads, num_kv_heads, head_dim = _heads(fields, family)
    vocab_size = fields.integer("vocab_size", 1)
    max_position_embeddings = fields.integer("max_position_embeddings", 1)
    rope = parse_rope(fields, max_position_embeddings)
    # Qwen2 has biases on query, key and value only, without a field that says so; the field of Llama and Qwen3 is
    # about all four projections.
    attention_bias = family == "qwen2" or bool(fields.optional_boolean("attention_bias"))
    return ModelConfig(
        family=family,
        vocab_size=vocab_size,
        hidden_size=fields.integer("hidden_size", 1),
        intermediate_size=fields.integer("intermediate_size", 1),
        num_layers=fields.integer("num_hidden_layers", 1),
        num_query_heads=num_query_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=scaled_max_positions(rope, max_position_embeddings),
        rms_norm_eps=fields.number("rms_norm_eps", 0, 1, low_open=True),
        rope=rope,
        tie_word_embeddings=bool(fields.optional_boolean("tie_word_embeddings")),
        attention_bias=attention_bias,
        attention_output_bias=family != "qwen2" and attention_bias,
        mlp_bias=family == "llama" and bool(fields.optional_boolean("mlp_bias")),
        qk_norm=family == "qwen3",
        dtype=_dtype(fields),
        bos_token_id=fields.optional_integer("bos_token_id", 0, vocab_size - 1),
        eos_token_ids=fields.optional_token_ids("eos_token_id", vocab_size - 1) or (),
    )


def load_generation_config(model_dir: Path) -> GenerationDefaults:
    """Read and check `generation_config.json`; every field is `None` where there is no such file.

    Raises:
        ModelError: the file is broken or a field is outside its range; the message names the field.
    """
    path = model_dir / "generation_config.json"
    if not path.exists():
        return GenerationDefaults()
    fields = read_fields(path)
    return GenerationDefaults(
        do_sample=fields.optional_boolean("do_sample"),
        temperature=fields.optional_number("temperature", 0),
        top_k=fields.optional_integer("top_k", 0),
        top_p=fields.optional_number("top_p", 0, 1, low_open=True),
        min_p=fields.optional_number("min_p", 0, 1),
        repetition_penalty=fields.optional_number("repetition_penalty", 0, low_open=True),
        eos_token_ids=fields.optional_token_ids("eos_token_id"),
    )


def _family(fields: JsonFields) -> Family:
    expected = f"a list of one of {', '.join(ARCHITECTURES)}"
    architectures = fields.values.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    error = fields.error("architectures", expected)
    if fields.has("auto_map"):
        raise ModelError(f"{error}; auto_map is {fields.values['auto_map']!r}, but zipage runs no code of checkpoints")
    raise error


def _refuse_unsupported(fields: JsonFields) -> None:
    if fields.has("quantization_config"):
        raise fields.error("quantization_config", "absent (quantised checkpoints are not supported)")
    if fields.has("hidden_act") and fields.values["hidden_act"] != "silu":
        raise fields.error("hidden_act", "silu")
    if fields.optional_boolean("use_sliding_window"):
        raise fields.error("use_sliding_window", "false (sliding-window attention is not supported)")
    layer_types = fields.values.get("layer_types") or []
    if not isinstance(layer_types, list) or any(layer_type != "full_attention" for layer_type in layer_types):
        raise fields.error("layer_types", "full_attention in every layer")


def _heads(fields: JsonFields, family: Family) -> tuple[int, int, int]:
    """Query heads, KV heads and head size."""
    num_query_heads = fields.integer("num_attention_heads", 1)
    num_kv_heads = fields.optional_integer("num_key_value_heads", 1) or num_query_heads
    if num_query_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads ({num_query_heads})")
    head_dim = fields.optional_integer("head_dim", 1)
    if head_dim is None and family == "qwen3":
        head_dim = QWEN3_HEAD_DIM
    if head_dim is None:
        hidden_size = fields.integer("hidden_size", 1)
        if hidden_size % num_query_heads:
            raise fields.error("hidden_size", f"a multiple of num_attention_heads ({num_query_heads})")
        head_dim = hidden_size // num_query_heads
    if head_dim % 2:
        raise ModelError(f"{fields.path}: head_dim must be even, not {head_dim}")
    return num_query_heads, num_kv_heads, head_dim


def _dtype(fields: JsonFields) -> CheckpointDType:
    name = "dtype" if fields.has("dtype") else "torch_dtype"
    value = fields.values.get(name)
    if value is None:
        return "float32"
    if not isinstance(value, str) or value not in CHECKPOINT_DTYPES:
        raise fields.error(name, f"one of {', '.join(CHECKPOINT_DTYPES)}")
    return CHECKPOINT_DTYPES[value]
