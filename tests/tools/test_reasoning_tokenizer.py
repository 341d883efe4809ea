"""The character tokenizer as zipage loads it."""

import random
from pathlib import Path

import numpy as np
import pytest

from tools.reasoning.checkpoint import export
from tools.reasoning.encoding import encode
from tools.reasoning.model import Reasoner, Shape
from tools.reasoning.vocabulary import CHARACTERS, SPECIAL_TOKENS, TOKEN_IDS, TOKENS, VOCAB_SIZE
from zipage.bundled.tasks.families import FAMILIES
from zipage.commands.chat import has_chat_template
from zipage.errors import InvalidRequestError
from zipage.text.frontend import ModelText
from zipage.text.model_text import load_model_text


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    export(Reasoner(Shape(layers=1, hidden=32, intermediate=32)), path)
    return path


@pytest.fixture(scope="module")
def model_text(directory: Path) -> ModelText:
    return load_model_text(directory)


def test_vocabulary_is_closed_and_of_the_models_size(model_text: ModelText) -> None:
    assert len(set(TOKENS)) == len(TOKENS) <= VOCAB_SIZE == model_text.vocab_size
    assert model_text.tokenizer.vocab_size == len(TOKENS)


def test_every_character_is_one_token_and_back(model_text: ModelText) -> None:
    token_ids = model_text.tokenizer.encode(CHARACTERS)
    assert token_ids == [TOKEN_IDS[character] for character in CHARACTERS]
    assert model_text.tokenizer.decode(token_ids, skip_special_tokens=True) == CHARACTERS


@pytest.mark.parametrize("text", ["é", "a{b}", "\t"])
def test_an_unknown_character_is_refused(model_text: ModelText, text: str) -> None:
    with pytest.raises(InvalidRequestError, match="prompt cannot be tokenized"):
        model_text.tokenizer.encode(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_template_writes_what_training_sees(model_text: ModelText, family: str) -> None:
    example = FAMILIES[family](random.Random(1), 500)
    document = encode(example)
    prompt = model_text.tokenizer.encode_chat([{"role": "user", "content": example.prompt}])
    assert prompt == document.token_ids[: document.prompt_length].tolist()
    shown = model_text.tokenizer.decode(document.token_ids[document.prompt_length :].tolist(), True)
    assert shown == f"<think>\n{example.reasoning}\n</think>\n{example.answer}"


def test_encoding_of_the_answer_is_the_tokenizers(model_text: ModelText) -> None:
    document = encode(FAMILIES["ledger"](random.Random(2), 300))
    text = model_text.tokenizer.decode_all(document.token_ids.tolist())
    assert np.array_equal(model_text.tokenizer.encode(text), document.token_ids)
    assert model_text.eos_token_ids == (document.token_ids[-1],)


def test_a_conversation_is_its_last_question(model_text: ModelText, directory: Path) -> None:
    assert has_chat_template(directory)
    question = {"role": "user", "content": "Multiply 12 by 34."}
    earlier = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "def"}]
    assert model_text.tokenizer.encode_chat([*earlier, question]) == model_text.tokenizer.encode_chat([question])
    with pytest.raises(InvalidRequestError, match="takes no system message"):
        model_text.tokenizer.encode_chat([{"role": "system", "content": "abc"}, question])


def test_special_tokens_are_hidden_but_thinking_is_shown(model_text: ModelText) -> None:
    assert model_text.tokenizer.special_ids == {TOKEN_IDS[token] for token in SPECIAL_TOKENS}
