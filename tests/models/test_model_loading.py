"""What loading refuses, and what it tolerates."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import edit_config, tiny_checkpoint

from zipage.errors import ModelError
from zipage.models.config import load_model_config
from zipage.models.decoder import Decoder
from zipage.models.loading import load_decoder

Tensors = dict[str, torch.Tensor]

QUERY = "model.layers.1.self_attn.q_proj.weight"


def load(path: Path) -> Decoder:
    return load_decoder(path, load_model_config(path), torch.float32, "cpu")


def edit_weights(path: Path, edit: Callable[[Tensors], object]) -> Path:
    """Change the tensors of a single-file checkpoint."""
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")
    return path


def edit_index(path: Path, edit: Callable[[dict[str, str]], object]) -> Path:
    """Change the `weight_map` of a sharded checkpoint."""
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index["weight_map"])
    file.write_text(json.dumps(index))
    return path


def test_projections_are_stacked_in_order(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen3", attention_bias=True)
    stored = load_file(path / "model.safetensors")
    attention = load(path).get_submodule("layers.1.attention")
    for kind in ("weight", "bias"):
        parts = [stored[f"model.layers.1.self_attn.{name}_proj.{kind}"] for name in "qkv"]
        assert torch.equal(attention.get_parameter(f"qkv.{kind}"), torch.cat(parts))
    query_norm, key_norm = (stored[f"model.layers.1.self_attn.{name}_norm.weight"] for name in "qk")
    head_norm = attention.get_parameter("head_norm.weight")
    assert torch.equal(head_norm, torch.stack([query_norm] * 4 + [key_norm] * 2))


def test_parameters_have_the_asked_dtype_and_no_gradient(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, "qwen2", dtype=torch.bfloat16)
    decoder = load_decoder(path, load_model_config(path), torch.float16, "cpu")
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.float16}
    assert decoder.rotary_table.dtype == torch.float16
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_are_one_parameter(tmp_path: Path, tied: bool) -> None:
    decoder = load(tiny_checkpoint(tmp_path, tie_word_embeddings=tied))
    assert (decoder.embedding is decoder.output_embedding) == tied


def test_redundant_tensors_are_ignored(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    plain = load(path).state_dict()

    def add_redundant(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors["model.rotary_emb.inv_freq"] = torch.zeros(8)

    loaded = load(edit_weights(path, add_redundant)).state_dict()
    assert plain.keys() == loaded.keys()
    assert all(torch.equal(plain[name], loaded[name]) for name in plain)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda tensors: tensors.pop(QUERY), f"1 tensors are missing, the first is {QUERY}"),
        (lambda tensors: tensors.pop("lm_head.weight"), "missing, the first is lm_head.weight"),
        (lambda tensors: tensors.update({"model.layers.7.x": torch.zeros(2)}), "model.layers.7.x is not part of"),
        (lambda tensors: tensors.update({QUERY.replace("weight", "bias"): torch.zeros(64)}), "q_proj.bias is not part"),
        (lambda tensors: tensors.update({QUERY: torch.zeros(32, 64)}), rf"{QUERY} has shape \(32, 64\), .*\(64, 64\)"),
        (lambda tensors: tensors.update({QUERY: torch.zeros(64)}), rf"{QUERY} has shape \(64,\)"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(1)}), r"model.norm.weight has shape \(1,\)"),
        (lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.int8)}), f"{QUERY} has dtype I8, .*quantised"),
        (lambda tensors: tensors.update({QUERY: tensors[QUERY].to(torch.float8_e4m3fn)}), f"{QUERY} has dtype F8_E4M3"),
        (lambda tensors: tensors.update({QUERY: tensors[QUERY].double()}), f"{QUERY} has dtype F64"),
    ],
)
def test_refused_tensor_is_named(tmp_path: Path, edit: Callable[[Tensors], object], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        load(edit_weights(tiny_checkpoint(tmp_path), edit))


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        (torch.zeros(127, 64), r"lm_head.weight has shape \(127, 64\)"),
        (torch.zeros(128, 64), "lm_head.weight differs from model.embed_tokens.weight, .*tie_word_embeddings"),
    ],
)
def test_contradicting_output_embedding_of_tied_model(tmp_path: Path, stored: torch.Tensor, named: str) -> None:
    path = tiny_checkpoint(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=named):
        load(edit_weights(path, lambda tensors: tensors.update({"lm_head.weight": stored})))


def test_query_norm_of_wrong_size_is_named(tmp_path: Path) -> None:
    path = edit_weights(
        tiny_checkpoint(tmp_path, "qwen3"),
        lambda tensors: tensors.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(1)}),
    )
    with pytest.raises(ModelError, match=r"q_norm.weight has shape \(1,\), but config.json asks for \(16,\)"):
        load(path)


def test_config_with_fewer_layers_than_weights(tmp_path: Path) -> None:
    path = edit_config(tiny_checkpoint(tmp_path), num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"model\.layers\.1\..* is not part of"):
        load(path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/tmp/model.safetensors", "sub/a.safetensors", "..", "", "pytorch_model.bin", 3]
)
def test_index_must_name_safetensors_files_of_its_directory(tmp_path: Path, name: str) -> None:
    path = tiny_checkpoint(tmp_path, max_shard_size="60KB")
    with pytest.raises(ModelError, match=f"weight_map names {name!r} for {QUERY}"):
        load(edit_index(path, lambda weight_map: weight_map.update({QUERY: name})))


def test_index_that_names_a_missing_file(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, max_shard_size="60KB")
    shard = sorted(path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"weight_map names {shard.name}, which is not in"):
        load(path)


def test_index_that_leaves_a_shard_out(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, max_shard_size="60KB")
    first = min(shard.name for shard in path.glob("model-*.safetensors"))

    def drop_first(weight_map: dict[str, str]) -> None:
        for name in [name for name, file in weight_map.items() if file == first]:
            del weight_map[name]

    with pytest.raises(ModelError, match="tensors are missing, the first is"):
        load(edit_index(path, drop_first))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path, max_shard_size="60KB")
    first, second = sorted(path.glob("model-*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: tensor}, second)
    with pytest.raises(ModelError, match=f"tensor {name} is in both .*{first.name} and .*{second.name}"):
        load(path)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "{"])
def test_broken_index(tmp_path: Path, content: str) -> None:
    path = tiny_checkpoint(tmp_path, max_shard_size="60KB")
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tiny_checkpoint(tmp_path)
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a complete safetensors file"):
        load(path)


def test_corrupt_header(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:40] = b"\xff" * 32
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a complete safetensors file"):
        load(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_not_loaded(tmp_path: Path, name: str) -> None:
    path = tiny_checkpoint(tmp_path)
    (path / "model.safetensors").rename(path / name)
    with pytest.raises(ModelError, match=f"has neither model.safetensors nor .*{name}.*convert them to safetensors"):
        load(path)


def test_no_weights(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json$"):
        load(path)
