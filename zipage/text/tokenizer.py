"""A model's tokenizer: text and chats to token ids, and token ids to text. Imports no torch where it can be avoided."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zipage.errors import InvalidRequestError, ModelError
from zipage.text.chat import normalize_messages

# Vocabularies without a tokenizer.json, which transformers can convert.
LEGACY_VOCABULARIES = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")


class TextTokenizer:
    """Wraps a transformers tokenizer.

    Attributes:
        vocab_size: one more than the largest token id; the model's logits may be wider or narrower.
        eos_token_id: the end-of-sequence token, where the tokenizer names one.
        special_ids: tokens that `skip_special_tokens` leaves out of a text.
        byte_values: the byte (0 to 255) of every byte-fallback token such as `<0xE2>`; empty in vocabularies that
            have no such tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._decode = _decoder_of(tokenizer)
        self.vocab_size: int = max(tokenizer.get_vocab().values(), default=-1) + 1
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.special_ids = _special_ids(tokenizer)
        self.byte_values = self._find_byte_tokens()
        self._pieces: dict[int, str] = {}

    @classmethod
    def load(cls, model_dir: Path) -> "TextTokenizer":
        """Read the tokenizer of a checkpoint; runs no code of the checkpoint and asks no network.

        Raises:
            ModelError: there is no tokenizer, or it cannot be read.
        """
        has_json = (model_dir / "tokenizer.json").is_file()
        if not has_json and not any((model_dir / name).is_file() for name in LEGACY_VOCABULARIES):
            raise ModelError(f"model directory {str(model_dir)!r} has no tokenizer.json or other vocabulary")
        try:
            loader = _json_loader() if has_json else _legacy_loader()
            return cls(loader.from_pretrained(str(model_dir), local_files_only=True, trust_remote_code=False))
        # Broken files surface as whatever the parser of the day raises, often a bare Exception.
        except Exception as error:
            raise ModelError(f"the tokenizer in {str(model_dir)!r} cannot be read: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Tokenize a prompt, with the special tokens that the tokenizer's own post-processor adds.

        Raises:
            InvalidRequestError: the vocabulary cannot express the text.
        """
        return self._encode(text, "prompt", add_special_tokens=True)

    def encode_chat(self, messages: list[dict[str, Any]]) -> list[int]:
        """Apply the model's chat template, up to where the assistant's answer begins.

        The template writes every special token itself; none is added to it.

        Raises:
            InvalidRequestError: the model has no chat template, a message is malformed, the template raised, or the
                vocabulary cannot express the text.
        """
        if not self._tokenizer.chat_template:
            raise InvalidRequestError(
                "messages: the model has no chat template; give prompt or prompt_token_ids instead", "messages"
            )
        conversation = normalize_messages(messages)
        try:
            text = self._tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        # A template is a program that was given a user's data: it may fail in any way.
        except Exception as error:
            raise InvalidRequestError(f"messages: the chat template failed: {error}", "messages") from error
        return self._encode(text, "messages", add_special_tokens=False)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of a token sequence; ids outside the vocabulary have none."""
        return self._decode([token_id for token_id in token_ids if self.has_text(token_id, skip_special_tokens)])

    def decode_all(self, token_ids: list[int]) -> str:
        """The text of tokens that all have text, special tokens included."""
        return self._decode(token_ids)

    def piece(self, token_id: int) -> str:
        """The text of one token as it stands inside a sequence, for example with its leading space.

        A token that is a part of a character gives U+FFFD, and one outside the vocabulary an empty text.
        """
        piece = self._pieces.get(token_id)
        if piece is None:
            # Decoders strip the space of a sequence's first token only, so the second of two is the token in context.
            once, twice = self.decode([token_id], False), self.decode([token_id, token_id], False)
            piece = self._pieces[token_id] = twice[len(once) :]
        return piece

    def has_text(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether a token contributes to a decoded text."""
        if skip_special_tokens and token_id in self.special_ids:
            return False
        return token_id < self.vocab_size and bool(self._tokenizer.convert_ids_to_tokens(token_id))

    def _encode(self, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False)
        # The library raises a bare Exception for a character that is not in a vocabulary without an unknown token.
        except Exception as error:
            raise InvalidRequestError(f"{field} cannot be tokenized: {error}", field) from error

    def _find_byte_tokens(self) -> dict[int, int]:
        vocabulary = self._tokenizer.get_vocab()
        names = {value: f"<0x{value:02X}>" for value in range(256)}
        tokens = {vocabulary[name]: value for value, name in names.items() if name in vocabulary}
        euro = [vocabulary.get(names[value], -1) for value in "€".encode()]
        # Other vocabularies may have tokens that only look like these; decoding a character tells.
        return tokens if -1 not in euro and self.decode_all(euro) == "€" else {}


def _special_ids(tokenizer: Any) -> frozenset[int]:
    # What `decode(skip_special_tokens=True)` of either kind of tokenizer leaves out.
    if not tokenizer.is_fast:
        return frozenset(tokenizer.all_special_ids)
    return frozenset(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)


def _decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    # The Rust tokenizer decodes in less than half the time of its wrapper, which adds nothing but a clean-up of spaces
    # that is wrong for text that comes in pieces.
    if tokenizer.is_fast:
        return functools.partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
    return functools.partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _json_loader() -> Any:
    # Reads a tokenizer.json as it is. AutoTokenizer would import torch first, and may rebuild the tokenizer from its
    # vocabulary by the rules of the class that tokenizer_config.json names.
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def _legacy_loader() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer
