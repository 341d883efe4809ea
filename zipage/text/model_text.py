"""Reads from a checkpoint what the tokenizer process needs of it."""

from pathlib import Path

from zipage.models.config import load_generation_config, load_model_config
from zipage.text.frontend import ModelText
from zipage.text.tokenizer import TextTokenizer


def load_model_text(model_dir: Path) -> ModelText:
    """The tokenizer, the vocabulary's size, the end-of-sequence tokens and the sampling defaults of a checkpoint.

    The tokens that end a completion are those of generation_config.json where it names any, else those of config.json,
    and the tokenizer's own.

    Raises:
        ModelError: a file is missing or not usable.
    """
    model = load_model_config(model_dir)
    defaults = load_generation_config(model_dir)
    tokenizer = TextTokenizer.load(model_dir)
    eos = list(defaults.eos_token_ids or model.eos_token_ids)
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in eos:
        eos.append(tokenizer.eos_token_id)
    # A checkpoint may name ids that its logits do not have; they can never be sampled.
    known = tuple(token_id for token_id in eos if token_id < model.vocab_size)
    return ModelText(tokenizer, model.vocab_size, known, defaults)
