"""Checkpoints: the model in the ordinary Hugging Face layout, and the state from which training goes on."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tools.reasoning.model import Reasoner, Shape
from tools.reasoning.tokenizer import save_tokenizer
from tools.reasoning.vocabulary import END, PAD, TOKEN_IDS

STATE_FILE = "training_state.safetensors"
MOMENTS = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq"), torch.optim.Muon: ("momentum_buffer",)}
"""What an optimizer remembers of each parameter, all of the parameter's shape."""

Optimizer = torch.optim.AdamW | torch.optim.Muon


def export(model: Reasoner, directory: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors in bf16, and the tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", _config(model.shape))
    _write_json(directory / "generation_config.json", {"do_sample": False, "eos_token_id": TOKEN_IDS[END]})
    weights = {name: parameter.detach().to("cpu", torch.bfloat16) for name, parameter in model.named_parameters()}
    _replace(directory / "model.safetensors", weights, {"format": "pt"})
    save_tokenizer(directory, model.shape.max_length)


def save_state(
    model: Reasoner, optimizers: Sequence[Optimizer], facts: dict[str, int | float], directory: Path
) -> None:
    """Write parameters and moments in float32.

    Args:
        model: whose training it is.
        optimizers: of the model's parameters; moments of before the first step are zeros.
        facts: numbers that `read_facts` gives back.
        directory: it exists.
    """
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter in _in_order(optimizer):
            for moment in MOMENTS[type(optimizer)]:
                value = optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
                tensors[f"{moment}.{names[id(parameter)]}"] = value
    _replace(directory / STATE_FILE, tensors, {"facts": json.dumps(facts)})


def read_facts(directory: Path) -> dict[str, int | float]:
    """The numbers that were saved with a state."""
    with safe_open(directory / STATE_FILE, framework="pt") as file:
        facts: dict[str, int | float] = json.loads(file.metadata()["facts"])
    return facts


def load_state(model: Reasoner, optimizers: Sequence[Optimizer], step: int, directory: Path) -> None:
    """Fill the parameters and the optimizers' moments from a saved state; `step` is how many steps were made."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with safe_open(directory / STATE_FILE, framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(f"parameter.{name}"))
        for optimizer in optimizers:
            state: dict[int, dict[str, torch.Tensor]] = {}
            for number, weight in enumerate(_in_order(optimizer)):
                name = names[id(weight)]
                moments = {moment: file.get_tensor(f"{moment}.{name}") for moment in MOMENTS[type(optimizer)]}
                counted = {"step": torch.tensor(float(step))} if isinstance(optimizer, torch.optim.AdamW) else {}
                state[number] = counted | moments
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(model: Reasoner, directory: Path) -> None:
    """Fill the parameters from a checkpoint that `export` wrote."""
    with safe_open(directory / "model.safetensors", framework="pt") as file, torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(file.get_tensor(name))


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_norm_eps,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_length,
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": TOKEN_IDS[END],
        "pad_token_id": TOKEN_IDS[PAD],
    }


def _in_order(optimizer: Optimizer) -> list[torch.Tensor]:
    """The parameters as `state_dict` numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _replace(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """A run that is killed while it writes leaves the file of before."""
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)


def _write_json(path: Path, fields: dict[str, object]) -> None:
    path.write_text(json.dumps(fields, indent=1) + "\n")
