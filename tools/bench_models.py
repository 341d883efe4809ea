"""Models of well-known shapes with random weights, for measurements in which only the shape counts."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from zipage.models.config import load_model_config
from zipage.models.decoder import Decoder
from zipage.models.loading import checkpoint_targets

_SHARD_BYTES = 4 << 30

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, tied: bool) -> dict[str, object]:
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return _QWEN3 | sizes | {"num_attention_heads": heads, "tie_word_embeddings": tied}


SHAPES: dict[str, dict[str, object]] = {
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, False),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, False),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, False),
    "llama3-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
}


def write_config(shape: str, directory: Path) -> None:
    """Write the `config.json` of a shape."""
    (directory / "config.json").write_text(json.dumps(SHAPES[shape]))


def write_random_model(shape: str, directory: Path) -> None:
    """Write a checkpoint of a shape with random weights in bfloat16, and a vocabulary of as many words."""
    write_config(shape, directory)
    config = load_model_config(directory)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(config.vocab_size)}, "w0"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    words.save(str(directory / "tokenizer.json"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = {
        name: target.shape
        for name, target in checkpoint_targets(Decoder(config, torch.bfloat16, "meta")).items()
        if target.view is not None
    }
    shard: dict[str, torch.Tensor] = {}
    files: dict[str, str] = {}
    size = 0
    for name, tensor_shape in shapes.items():
        scale = 1.0 if len(tensor_shape) == 1 else tensor_shape[-1] ** -0.5
        shard[name] = (torch.randn(tensor_shape, dtype=torch.bfloat16, device=device) * scale).cpu()
        size += shard[name].nbytes
        if size >= _SHARD_BYTES or name == list(shapes)[-1]:
            file = f"model-{len(set(files.values())):05d}.safetensors"
            save_file(shard, directory / file)
            files |= dict.fromkeys(shard, file)
            shard, size = {}, 0
    index = {"metadata": {}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
