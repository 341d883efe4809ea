"""Writes the character tokenizer and the chat template in the ordinary Hugging Face layout."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from tools.reasoning.vocabulary import ASSISTANT, END, PAD, SPECIAL_TOKENS, TOKEN_IDS, USER, VISIBLE_TOKENS

# The model has learned single questions, so a conversation is its last message.
CHAT_TEMPLATE = (
    "{% if messages[-1].role != 'user' or messages[0].role == 'system' %}"
    "{{ raise_exception('this model answers one user message and takes no system message') }}"
    "{% endif %}"
    f"{USER}{{{{ messages[-1].content }}}}{END}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def build_tokenizer() -> Tokenizer:
    """One token for each character; encoding raises for a character that is not in the vocabulary."""
    tokenizer = Tokenizer(models.WordLevel(TOKEN_IDS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in VISIBLE_TOKENS])
    return tokenizer


def save_tokenizer(directory: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Args:
        directory: of the checkpoint; it exists.
        max_length: tokens of the longest sequence.
    """
    build_tokenizer().save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
