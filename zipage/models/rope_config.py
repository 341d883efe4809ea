"""The rotary position embedding that a config.json describes, in the old and in the new style of its fields."""

import math
from typing import TypeVar

import msgspec

from zipage.models.fields import MAX_INTEGER, JsonFields

DEFAULT_THETA = 10000.0

# `finetuned` is a remark that some YaRN checkpoints carry; `partial_rotary_factor` is checked by its own function.
_COMMON_KEYS = {
    "finetuned",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "type",
}
_KEYS_OF_TYPE = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "high_freq_factor", "low_freq_factor"},
    "yarn": {
        "attention_factor",
        "attn_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}


class LinearScaling(msgspec.Struct, frozen=True, kw_only=True, tag="linear"):
    """Position interpolation: every frequency is divided by `factor` (at least 1)."""

    factor: float


class Llama3Scaling(msgspec.Struct, frozen=True, kw_only=True, tag="llama3"):
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, those between are blended.

    Low are wavelengths above `original_max_position_embeddings / low_freq_factor`, high those below
    `original_max_position_embeddings / high_freq_factor`, both in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class YarnScaling(msgspec.Struct, frozen=True, kw_only=True, tag="yarn"):
    """YaRN (Peng et al., arXiv 2309.00071).

    Dimensions that turn more than `beta_fast` times within `original_max_position_embeddings` tokens are kept, those
    that turn less than `beta_slow` times are divided by `factor`, with a linear ramp between (whose ends are rounded
    to whole dimensions with `truncate`). Cosine and sine are multiplied by `attention_factor`.
    """

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Base `theta` of the frequencies and how they are scaled; `None` is not at all."""

    theta: float
    scaling: RopeScaling | None


def parse_rope(fields: JsonFields, max_position_embeddings: int) -> RopeConfig:
    """Read `rope_theta` with `rope_scaling`, or `rope_parameters`, the way transformers does.

    `rope_scaling` wins over `rope_parameters`, and a `rope_theta` inside of either wins over the one beside it.

    Raises:
        ModelError: a field is missing, unknown or outside its range, or the scaling is not linear, llama3 or yarn.
    """
    _refuse_partial_rotary(fields)
    theta = fields.optional_number("rope_theta", 1, low_open=True) or DEFAULT_THETA
    name = next((name for name in ("rope_scaling", "rope_parameters") if fields.values.get(name)), None)
    if name is None:
        return RopeConfig(theta=theta, scaling=None)
    rope = fields.nested(name)
    _refuse_partial_rotary(rope)
    rope_type = _rope_type(rope)
    for key in rope.values:
        if rope.has(key) and key not in _COMMON_KEYS | _KEYS_OF_TYPE[rope_type]:
            raise rope.error(key, f"absent where the rope type is {rope_type}")
    theta = rope.optional_number("rope_theta", 1, low_open=True) or theta
    original = (
        fields.optional_integer("original_max_position_embeddings", 1)
        or rope.optional_integer("original_max_position_embeddings", 1)
        or max_position_embeddings
    )
    scaling: RopeScaling | None = None
    if rope_type == "linear":
        scaling = LinearScaling(factor=_factor(rope))
    elif rope_type == "llama3":
        scaling = _parse_llama3(rope, original)
    elif rope_type == "yarn":
        scaling = _parse_yarn(rope, original)
    return RopeConfig(theta=theta, scaling=scaling)


def scaled_max_positions(rope: RopeConfig, max_position_embeddings: int) -> int:
    """The longest sequence that the scaled embedding is meant for, in tokens, as vLLM understands the fields.

    * linear: `max_position_embeddings * factor`, the field being the length before scaling;
    * yarn: `original_max_position_embeddings * factor`, because checkpoints disagree on whether
      `max_position_embeddings` is the length before or after scaling;
    * llama3 and no scaling: `max_position_embeddings`, the field being the length after scaling.
    """
    match rope.scaling:
        case LinearScaling(factor=factor):
            length = max_position_embeddings * factor
        case YarnScaling(factor=factor, original_max_position_embeddings=original):
            length = original * factor
        case _:
            length = max_position_embeddings
    return min(int(length), MAX_INTEGER)


def _rope_type(rope: JsonFields) -> str:
    name = "rope_type" if rope.has("rope_type") else "type"
    rope_type = rope.values.get(name, "default")
    if not isinstance(rope_type, str) or rope_type not in _KEYS_OF_TYPE:
        raise rope.error(name, f"one of {', '.join(_KEYS_OF_TYPE)}")
    return rope_type


def _refuse_partial_rotary(fields: JsonFields) -> None:
    if fields.has("partial_rotary_factor") and fields.values["partial_rotary_factor"] != 1:
        raise fields.error("partial_rotary_factor", "1 (the whole head is rotated)")


def _factor(rope: JsonFields) -> float:
    return rope.number("factor", 1, MAX_INTEGER)


def _parse_llama3(rope: JsonFields, original: int) -> Llama3Scaling:
    low = rope.number("low_freq_factor", 0, low_open=True)
    high = rope.number("high_freq_factor", 0, low_open=True)
    if high <= low:
        raise rope.error("high_freq_factor", f"greater than low_freq_factor ({low})")
    return Llama3Scaling(
        factor=_factor(rope), low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=original
    )


def _parse_yarn(rope: JsonFields, original: int) -> YarnScaling:
    beta_fast = _default(rope.optional_number("beta_fast", 0, low_open=True), 32.0)
    beta_slow = _default(rope.optional_number("beta_slow", 0, low_open=True), 1.0)
    if beta_fast < beta_slow:
        raise rope.error("beta_fast", f"at least beta_slow ({beta_slow})")
    factor = _factor(rope)
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        truncate=_default(rope.optional_boolean("truncate"), True),
        attention_factor=_yarn_attention_factor(rope, factor),
    )


def _yarn_attention_factor(rope: JsonFields, factor: float) -> float:
    """`attention_factor`, or YaRN's `0.1 ln(factor) + 1`, weighted by `mscale` and `mscale_all_dim` if both are there.

    `attn_factor` multiplies it, as vLLM and llama.cpp read the field and transformers does not:
    DeepSeek-R1-0528-Qwen3-8B uses it to cancel YaRN's own factor.
    """
    multiplier = _default(rope.optional_number("attn_factor", 0, low_open=True), 1.0)
    given = rope.optional_number("attention_factor", 0, low_open=True)
    if given is not None:
        return given * multiplier
    logarithm = 0.1 * math.log(factor)
    mscale = rope.optional_number("mscale", 0)
    mscale_all_dim = rope.optional_number("mscale_all_dim", 0)
    if mscale and mscale_all_dim:
        return (mscale * logarithm + 1) / (mscale_all_dim * logarithm + 1) * multiplier
    return (logarithm + 1) * multiplier


_Value = TypeVar("_Value")


def _default(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value
