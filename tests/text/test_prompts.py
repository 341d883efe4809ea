"""Which prompts are accepted."""

import pytest
import small_tokenizers

from zipage.errors import InvalidRequestError
from zipage.messages import GenerationRequest
from zipage.text.prompts import prompt_tokens

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [({"prompt": "AB"}, [1, 5, 6]), ({"prompt": ""}, [1]), ({"prompt_token_ids": [63, 0, 5]}, [63, 0, 5])],
)
def test_accepted_prompts(prompt: dict, expected: list[int]) -> None:
    assert prompt_tokens(GenerationRequest(request_id="r", **prompt), small_tokenizers.characters(), 64) == expected


def test_chat_prompt() -> None:
    tokenizer = small_tokenizers.byte_level()
    token_ids = prompt_tokens(GenerationRequest(request_id="r", messages=MESSAGES), tokenizer, tokenizer.vocab_size)
    assert token_ids == tokenizer.encode_chat(MESSAGES)


@pytest.mark.parametrize(
    ("prompt", "message", "field"),
    [
        ({}, "exactly one of .* not none of them", None),
        ({"prompt": "A", "prompt_token_ids": [1]}, "not prompt and prompt_token_ids", None),
        ({"prompt": "", "messages": []}, "not prompt and messages", None),
        ({"prompt_token_ids": []}, "prompt_token_ids must have at least one token", "prompt_token_ids"),
        ({"prompt_token_ids": [1, -1]}, r"\[0, 63\], not -1", "prompt_token_ids"),
        ({"prompt_token_ids": [1, 64, 2]}, r"\[0, 63\], not 64", "prompt_token_ids"),
        ({"messages": MESSAGES}, "no chat template", "messages"),
    ],
)
def test_refused_prompts(prompt: dict, message: str, field: str | None) -> None:
    with pytest.raises(InvalidRequestError, match=message) as refusal:
        prompt_tokens(GenerationRequest(request_id="r", **prompt), small_tokenizers.characters(), 64)
    assert refusal.value.field == field


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="prompt must have at least one token"):
        prompt_tokens(GenerationRequest(request_id="r", prompt=""), small_tokenizers.metaspace(), 64)


def test_tokenizer_that_is_larger_than_the_model() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt: token id must be in \[0, 5\], not 6"):
        prompt_tokens(GenerationRequest(request_id="r", prompt="AB"), small_tokenizers.characters(), 6)
