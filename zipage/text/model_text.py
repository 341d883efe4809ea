"""Reads from a checkpoint what the tokenizer process needs of it."""

from pathlib import Path

from zipage.models.config import load_generation_config, load_model_config
from zipage.text.defaults import end_of_sequence_ids
from zipage.text.frontend import ModelText
from zipage.text.tokenizer import TextTokenizer


def load_model_text(model_dir: Path) -> ModelText:
    """The tokenizer, the vocabulary's size, the end-of-sequence tokens and the sampling defaults of a checkpoint.

    Raises:
        ModelError: a file is missing or not usable.
    """
    model = load_model_config(model_dir)
    defaults = load_generation_config(model_dir)
    tokenizer = TextTokenizer.load(model_dir)
    eos_token_ids = end_of_sequence_ids(model, defaults, tokenizer.eos_token_id)
    return ModelText(tokenizer, model.vocab_size, eos_token_ids, defaults)
