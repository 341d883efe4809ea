"""Reading config.json and generation_config.json."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, tiny_checkpoint

from zipage.errors import ModelError
from zipage.models.config import GenerationDefaults, ModelConfig, load_generation_config, load_model_config
from zipage.models.rope_config import Llama3Scaling, RopeConfig, YarnScaling
from zipage.models.source import default_model

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1000,
    "rms_norm_eps": 1e-5,
}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 300}
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}


def write(path: Path, fields: dict[str, Any], name: str = "config.json") -> Path:
    """Write a JSON file without the fields that are `...`; the directory."""
    (path / name).write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))
    return path


def load(path: Path, **changes: Any) -> ModelConfig:
    return load_model_config(write(path, CONFIG | changes))


def test_every_field(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        num_hidden_layers=3,
        head_dim=20,
        tie_word_embeddings=True,
        mlp_bias=True,
        torch_dtype="bfloat16",
        bos_token_id=7,
        eos_token_id=[8, 9],
        rope_theta=5000,
    )
    assert config == ModelConfig(
        family="llama",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_layers=3,
        num_query_heads=4,
        num_kv_heads=2,
        head_dim=20,
        max_model_len=1000,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=5000.0, scaling=None),
        tie_word_embeddings=True,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=True,
        qk_norm=False,
        dtype="bfloat16",
        bos_token_id=7,
        eos_token_ids=(8, 9),
    )


def test_defaults_of_absent_fields(tmp_path: Path) -> None:
    config = load(tmp_path, num_key_value_heads=None)
    assert (config.num_kv_heads, config.head_dim) == (4, 16)
    assert config.rope == RopeConfig(theta=10000.0, scaling=None)
    assert (config.tie_word_embeddings, config.dtype) == (False, "float32")
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())
    assert load(tmp_path, **QWEN3).head_dim == 128


@pytest.mark.parametrize(
    ("family", "attention_bias", "expected"),
    [
        ("Llama", True, (True, True)),
        ("Llama", False, (False, False)),
        ("Qwen2", ..., (True, False)),
        ("Qwen3", True, (True, True)),
        ("Qwen3", ..., (False, False)),
    ],
)
def test_biases_of_family(tmp_path: Path, family: str, attention_bias: Any, expected: tuple[bool, bool]) -> None:
    config = load(tmp_path, architectures=[f"{family}ForCausalLM"], attention_bias=attention_bias)
    assert (config.attention_bias, config.attention_output_bias) == expected
    assert config.qk_norm == (family == "Qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_config_written_by_transformers(tmp_path: Path, family: str) -> None:
    config = load_model_config(tiny_checkpoint(tmp_path, family, head_dim=32, max_position_embeddings=333))
    assert (config.family, config.head_dim, config.max_model_len) == (family, 32, 333)
    assert (config.dtype, config.bos_token_id, config.eos_token_ids) == ("float32", 1, (2,))


def test_config_of_bundled_model() -> None:
    config = load_model_config(default_model())
    assert (config.family, config.dtype, config.max_model_len) == ("qwen3", "bfloat16", 8192)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_dtype_field(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, **{name: "float16"}).dtype == "float16"


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"type": "linear", "factor": 2.5}, 2500),
        (YARN, 1200),
        ({"rope_type": "yarn", "factor": 4.0}, 4000),
        (LLAMA3 | {"original_max_position_embeddings": 250}, 1000),
        ({"rope_type": "default", "factor": None}, 1000),
        ({}, 1000),
    ],
)
def test_max_model_len_with_rope_scaling(tmp_path: Path, rope: dict[str, Any], expected: int) -> None:
    assert load(tmp_path, rope_scaling=rope).max_model_len == expected
    assert load(tmp_path, rope_parameters=rope | {"rope_theta": 10000.0}).max_model_len == expected


def test_precedence_of_rope_fields(tmp_path: Path) -> None:
    assert load(tmp_path, rope_theta=30, rope_parameters={"rope_theta": 20}).rope.theta == 20
    both = load(tmp_path, rope_scaling=YARN, rope_parameters={"rope_type": "linear", "factor": 2}, rope_theta=50)
    assert isinstance(both.rope.scaling, YarnScaling)
    assert both.rope.theta == 50
    named_both_ways = load(tmp_path, rope_scaling=LLAMA3 | {"type": "linear"}, original_max_position_embeddings=77)
    assert named_both_ways.rope.scaling == Llama3Scaling(
        factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=77
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.1 * math.log(4) + 1),
        ({"attention_factor": 0.5}, 0.5),
        ({"mscale": 2, "mscale_all_dim": 0.5}, (0.2 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
        ({"mscale": 2}, 0.1 * math.log(4) + 1),
        # The numbers of DeepSeek-R1-0528-Qwen3-8B, whose attn_factor takes YaRN's own factor back.
        ({"attn_factor": 0.8782488562869419}, 1.0),
    ],
)
def test_yarn_attention_factor(tmp_path: Path, fields: dict[str, float], expected: float) -> None:
    scaling = load(tmp_path, rope_scaling=YARN | fields).rope.scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.attention_factor == pytest.approx(expected)


def test_sliding_window_that_is_not_used(tmp_path: Path) -> None:
    config = load(tmp_path, **QWEN3, sliding_window=4096, use_sliding_window=False, layer_types=["full_attention"] * 2)
    assert config.family == "qwen3"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ...}, "architectures is missing"),
        ({"architectures": []}, "architectures must .*LlamaForCausalLM.* not \\[\\]"),
        ({"architectures": ["MistralForCausalLM"]}, "architectures .*MistralForCausalLM"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"architectures": ["XForCausalLM"], "auto_map": {"AutoModel": "x.X"}}, "architectures .*auto_map .*x\\.X"),
        ({"architectures": ..., "auto_map": {"AutoModel": "x.X"}}, "auto_map .*x\\.X"),
        ({"use_sliding_window": True}, "use_sliding_window .*True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .*sliding_attention"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config .*fp8"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, not 'gelu'"),
        ({"dtype": "float8_e4m3fn"}, "dtype .*float8_e4m3fn"),
        ({"torch_dtype": ["float16"]}, "torch_dtype .*float16"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor .*0.5"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor .*0.5"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_scaling.rope_type .*'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.type .*'longrope'"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_parameters.rope_type .*yarn"),
        ({"rope_scaling": [4]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": {"factor": 2}}}, "rope_parameters.full_attention .*absent"),
        ({"rope_scaling": YARN | {"mrope_section": [1]}}, "rope_scaling.mrope_section .*absent .*yarn"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling.factor .*0.5"),
        ({"rope_scaling": YARN | {"factor": "4"}}, "rope_scaling.factor .*'4'"),
        ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}}, "rope_scaling.beta_fast .*beta_slow \\(2"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "rope_scaling.truncate"),
        ({"rope_scaling": YARN | {"attention_factor": -1}}, "rope_scaling.attention_factor .*-1"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings .*0"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "rope_scaling.low_freq_factor is missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "rope_scaling.high_freq_factor .*low_freq_factor"),
        ({"rope_theta": 0}, "rope_theta .*0"),
        ({"rope_theta": True}, "rope_theta .*True"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be an integer .*'64'"),
        ({"hidden_size": 64.0}, "hidden_size .*64.0"),
        ({"intermediate_size": 0}, "intermediate_size .*0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers .*-1"),
        ({"num_hidden_layers": True}, "num_hidden_layers .*True"),
        ({"num_attention_heads": 2**40}, "num_attention_heads .*1099511627776"),
        ({"max_position_embeddings": ...}, "max_position_embeddings is missing"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is missing"),
        ({"rms_norm_eps": 0}, "rms_norm_eps .*0"),
        ({"rms_norm_eps": 10**400}, "not valid JSON|rms_norm_eps"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must be a divisor of num_attention_heads \\(4\\), not 3"),
        ({"hidden_size": 66}, "hidden_size must be a multiple of num_attention_heads \\(4\\), not 66"),
        ({"head_dim": 15}, "head_dim must be even, not 15"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false, not 'yes'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
        ({"bos_token_id": 100}, "bos_token_id .*100"),
        ({"eos_token_id": [2, 100]}, "eos_token_id .*100"),
        ({"eos_token_id": "2"}, "eos_token_id .*'2'"),
    ],
)
def test_refused_config_names_the_field(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        load(tmp_path, **changes)


def test_long_values_are_cut_in_messages(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="quantization_config") as caught:
        load(tmp_path, quantization_config={"ignore": ["lm_head"] * 10000})
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100000, b'{"vocab_size": NaN}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_broken_json(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    load_file = load_model_config if name == "config.json" else load_generation_config
    with pytest.raises(ModelError, match=rf"{name} (is not valid JSON|must hold one JSON object)"):
        load_file(tmp_path)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read .*config\.json"):
        load_model_config(tmp_path)


def test_generation_defaults(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path) == GenerationDefaults()
    fields: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0,
        "repetition_penalty": 1,
    }
    write(tmp_path, fields | {"eos_token_id": [5, 6], "max_length": 20, "pad_token_id": 5}, "generation_config.json")
    assert load_generation_config(tmp_path) == GenerationDefaults(**fields, eos_token_ids=(5, 6))
    write(tmp_path, {"eos_token_id": 7, "top_k": None}, "generation_config.json")
    assert load_generation_config(tmp_path) == GenerationDefaults(eos_token_ids=(7,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("do_sample", "true"),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("eos_token_id", -1),
        ("eos_token_id", ["</s>"]),
    ],
)
def test_refused_generation_default_names_the_field(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"{field} must be .*not {value!r}".replace("[", r"\[")):
        load_generation_config(write(tmp_path, {field: value}, "generation_config.json"))


def test_configuration_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from zipage.models import config, source\n"
        "model = source.resolve_model(str(source.default_model()), None)\n"
        "config.load_model_config(model), config.load_generation_config(model)\n"
        "print({'torch', 'transformers'} & set(sys.modules))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
