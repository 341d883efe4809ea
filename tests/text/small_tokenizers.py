"""Small tokenizers of every kind that checkpoints bring, built in memory."""

import functools
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from zipage.models.source import default_model
from zipage.text.tokenizer import TextTokenizer

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "hello world, hello there: 日本語 日本 中文",
    "smile 😀😀 and 👩‍👩‍👧 family, naïve café",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level_backend() -> Tokenizer:
    """Byte-level BPE in the way of GPT-2, Llama 3 and Qwen; its post-processor adds `<|bos|>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|bos|>", "<|end|>", "<|start|>"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    backend.add_tokens([AddedToken("<think>", special=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", backend.token_to_id("<|bos|>"))]
    )
    return backend


def byte_fallback_backend() -> Tokenizer:
    """A sentencepiece vocabulary in the way of Llama 2: word starts are `▁`, unknown characters are byte tokens."""
    words = ["▁", "▁the", "▁hello", "▁world", "he", "l", "o", "t", "a", ",", "\ufffd", "é"]
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"<0x{value:02X}>", -20.0) for value in range(256)]
    pieces += [(word, -float(index + 1)) for index, word in enumerate(words)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


def metaspace_backend() -> Tokenizer:
    """A sentencepiece vocabulary with the Metaspace decoder, without byte tokens."""
    words = ["<unk>", "▁", "▁the", "▁hello", "▁world", "he", "l", "o", "t", "▁▁"]
    backend = Tokenizer(models.Unigram([(word, -float(index)) for index, word in enumerate(words)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def word_piece_backend() -> Tokenizer:
    """A WordPiece vocabulary, whose decoder puts spaces between words and none before `##` pieces."""
    words = ["[UNK]", "hello", "world", "##s", "##ing", ".", ",", "do", "n't"]
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return backend


def characters_backend() -> Tokenizer:
    """One token for each of a few characters; its post-processor adds `<s>`."""
    tokens = ["<pad>", "<s>", "</s>", *"\n ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-=:;?#>"]
    backend = Tokenizer(models.WordLevel({token: token_id for token_id, token in enumerate(tokens)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(tokens[:3])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def wrap(backend: Tokenizer, **settings: Any) -> TextTokenizer:
    """A `TextTokenizer` around `backend`; `settings` are those of tokenizer_config.json."""
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **settings))


@functools.cache
def byte_level() -> TextTokenizer:
    return wrap(byte_level_backend(), bos_token="<|bos|>", eos_token="<|end|>", chat_template=CHAT_TEMPLATE)


@functools.cache
def byte_level_byte_tokens() -> list[int]:
    """The tokens of single bytes in `byte_level`, by byte: printable characters stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    characters = {value: chr(value) for value in printable}
    characters |= {value: chr(256 + index) for index, value in enumerate(others)}
    vocabulary = byte_level_backend().get_vocab()
    return [vocabulary[characters[value]] for value in range(256)]


@functools.cache
def byte_fallback() -> TextTokenizer:
    return wrap(byte_fallback_backend(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def metaspace() -> TextTokenizer:
    return wrap(metaspace_backend())


@functools.cache
def word_piece() -> TextTokenizer:
    return wrap(word_piece_backend())


@functools.cache
def characters() -> TextTokenizer:
    return wrap(characters_backend(), bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@functools.cache
def bundled() -> TextTokenizer:
    return TextTokenizer.load(default_model())


ALL = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "metaspace": metaspace,
    "word_piece": word_piece,
    "characters": characters,
    "bundled": bundled,
}
