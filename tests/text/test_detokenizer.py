"""Incremental detokenization against decoding everything at once."""

import itertools

import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from zipage.text.detokenizer import CONTEXT_TOKENS, IncrementalDetokenizer
from zipage.text.tokenizer import TextTokenizer


def stream(tokenizer: TextTokenizer, prompt: list[int], output: list[int], skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip)
    return [*(detokenizer.push(token_id) for token_id in output), detokenizer.flush()]


def added_text(before: str, after: str) -> str:
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False))
    return after[len(list(common)) :]


def whole_decode(tokenizer: TextTokenizer, prompt: list[int], output: list[int], skip: bool) -> str:
    return added_text(tokenizer.decode(prompt, skip), tokenizer.decode(prompt + output, skip))


def decode_runs(tokenizer: TextTokenizer, token_ids: list[int], skip: bool) -> str:
    """Text after an ordinary first token, with every run of byte tokens decoded by itself."""
    visible = [token_id for token_id in token_ids if tokenizer.has_text(token_id, skip)]
    anchor = tokenizer.encode("o")[-1]
    text = ""
    for are_bytes, run in itertools.groupby(visible, tokenizer.byte_values.__contains__):
        if are_bytes:
            text += bytes(tokenizer.byte_values[token_id] for token_id in run).decode(errors="replace")
        else:
            text += tokenizer.decode([anchor, *run], False).removeprefix(tokenizer.decode([anchor], False))
    return text


def token_lists(tokenizer: TextTokenizer, max_size: int = 40) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=max_size)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "word_piece", "characters", "bundled"])
@settings(deadline=None)
@given(data=st.data())
def test_any_tokens_give_the_text_of_the_whole(kind: str, data: st.DataObject) -> None:
    tokenizer = small_tokenizers.ALL[kind]()
    prompt, output, skip = data.draw(st.tuples(token_lists(tokenizer, 12), token_lists(tokenizer), st.booleans()))
    assert "".join(stream(tokenizer, prompt, output, skip)) == whole_decode(tokenizer, prompt, output, skip)


@settings(deadline=None)
@given(data=st.data())
def test_any_bytes_give_the_text_of_the_whole(data: st.DataObject) -> None:
    tokenizer = small_tokenizers.byte_level()
    fragments = st.text(max_size=3).map(str.encode) | st.binary(max_size=3)
    encoded = b"".join(data.draw(st.lists(fragments, max_size=20)))
    byte_tokens = small_tokenizers.byte_level_byte_tokens()
    token_ids = [byte_tokens[value] for value in encoded]
    cut = data.draw(st.integers(0, len(token_ids)))
    output = token_ids[cut:]
    expected = added_text(encoded[:cut].decode(errors="replace"), encoded.decode(errors="replace"))
    assert "".join(stream(tokenizer, token_ids[:cut], output, True)) == expected


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=6), skip=st.booleans())
def test_texts_in_byte_fallback_tokens_give_the_text_of_the_whole(texts: list[str], skip: bool) -> None:
    tokenizer = small_tokenizers.byte_fallback()
    prompt, *turns = [tokenizer.encode(text.replace("▁", "")) for text in ["hello", *texts]]
    output = [token_id for turn in turns for token_id in turn]
    assert "".join(stream(tokenizer, prompt, output, skip)) == whole_decode(tokenizer, prompt, output, skip)


@settings(deadline=None)
@given(data=st.data())
def test_any_byte_fallback_tokens_keep_what_is_valid(data: st.DataObject) -> None:
    tokenizer = small_tokenizers.byte_fallback()
    # A byte of a euro sign, a whole U+FFFD, or anything.
    likely = [*(3 + value for value in "€".encode()), tokenizer.encode("\ufffd")[-1]]
    token_ids = st.sampled_from(likely) | st.integers(0, tokenizer.vocab_size)
    prompt, output = data.draw(st.tuples(st.lists(token_ids, max_size=6), st.lists(token_ids, max_size=30)))
    prompt = [*tokenizer.encode("hello"), *prompt]
    skip = data.draw(st.booleans())
    before, after = (decode_runs(tokenizer, token_ids, skip) for token_ids in (prompt, prompt + output))
    assert "".join(stream(tokenizer, prompt, output, skip)) == added_text(before, after)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", ["hello 日本語 😀👩‍👩‍👧 €, the", "日本", "hello  the", "😀\nhello\n"])
def test_a_character_comes_with_its_last_token(kind: str, text: str) -> None:
    tokenizer = small_tokenizers.ALL[kind]()
    prompt, output = tokenizer.encode("the"), tokenizer.encode(text)[1:]
    pieces = stream(tokenizer, prompt, output, True)
    assert "".join(pieces[:-1]).removeprefix(" ") == text.removeprefix(" ")
    assert not any("\ufffd" in piece for piece in pieces)
    for index, piece in enumerate(pieces[:-1]):
        followed = tokenizer.decode(prompt + output[: index + 1], True)
        assert (piece == "") == followed.endswith("\ufffd")


def test_word_starts_after_a_prompt_keep_their_space() -> None:
    tokenizer = small_tokenizers.byte_fallback()
    hello, world = tokenizer.encode("hello world")[1:]
    assert stream(tokenizer, tokenizer.encode("the"), [hello, world], True) == [" hello", " world", ""]
    assert stream(tokenizer, [tokenizer.encode("")[0]], [hello, world], True) == ["hello", " world", ""]


def test_word_start_after_byte_tokens_alone_keeps_its_space() -> None:
    tokenizer = small_tokenizers.byte_fallback()
    output = [*(3 + value for value in "€".encode()), tokenizer.encode("hello")[-1]]
    assert "".join(stream(tokenizer, [], output, True)) == "€ hello"


def test_incomplete_character_at_the_end_is_shown_by_flush() -> None:
    for kind in ("byte_level", "byte_fallback"):
        tokenizer = small_tokenizers.ALL[kind]()
        *_, first, _ = tokenizer.encode("ʥ")
        assert stream(tokenizer, tokenizer.encode("the"), [first], True) == ["", "\ufffd"]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_character_that_the_prompt_leaves_unfinished(kind: str) -> None:
    tokenizer = small_tokenizers.ALL[kind]()
    *prompt, last = tokenizer.encode("theʥ")
    comma = tokenizer.encode(",")[-1]
    assert stream(tokenizer, prompt, [last, comma], True) == ["ʥ", ",", ""]
    assert stream(tokenizer, prompt, [comma], True) == [",", ""]
    assert stream(tokenizer, prompt, [], True) == [""]
    assert "".join(stream(tokenizer, prompt, [prompt[-1]], True)) == "\ufffd"


def test_special_tokens_are_shown_or_skipped() -> None:
    tokenizer = small_tokenizers.byte_level()
    output = tokenizer.encode("the<|end|><think> fox")[1:]
    assert "".join(stream(tokenizer, [0], output, True)) == "the<think> fox"
    assert "".join(stream(tokenizer, [0], output, False)) == "the<|end|><think> fox"


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@pytest.mark.parametrize("text", ["the ", "😀", "\ufffd"])
def test_work_per_token_does_not_grow(kind: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = small_tokenizers.ALL[kind]()
    # Every third token is missing, so that most characters are broken.
    output = [token_id for index, token_id in enumerate(tokenizer.encode(text * 200)[1:]) if index % 3 != 2]
    lengths = []
    decode_all = tokenizer.decode_all
    monkeypatch.setattr(
        tokenizer, "decode_all", lambda token_ids: lengths.append(len(token_ids)) or decode_all(token_ids)
    )
    stream(tokenizer, tokenizer.encode("the " * 50), output, True)
    assert max(lengths) <= 2 * CONTEXT_TOKENS + 2
    assert len(lengths) <= 2 * len(output) + 4 * CONTEXT_TOKENS
