"""The prompt of a request as token ids."""

from zipage.errors import InvalidRequestError
from zipage.messages import GenerationRequest
from zipage.text.tokenizer import TextTokenizer

PROMPT_FIELDS = ("prompt", "prompt_token_ids", "messages")


def prompt_tokens(request: GenerationRequest, tokenizer: TextTokenizer, vocab_size: int) -> list[int]:
    """Tokenize the prompt of `request`, whichever of the three fields holds it.

    Args:
        request: gives exactly one of `prompt`, `prompt_token_ids` and `messages`.
        tokenizer: the model's.
        vocab_size: of the model's embedding; every id must be below it.

    Raises:
        InvalidRequestError: none or several of the fields are given, the prompt has no tokens, or a token id is
            outside the vocabulary.
    """
    given = [field for field in PROMPT_FIELDS if getattr(request, field) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise InvalidRequestError(f"exactly one of {', '.join(PROMPT_FIELDS)} must be given, not {found}")
    token_ids = _tokenize(request, tokenizer)
    if not token_ids:
        raise InvalidRequestError(f"{given[0]} must have at least one token", given[0])
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{given[0]}: token id must be in [0, {vocab_size - 1}], not {token_id}", given[0]
            )
    return token_ids


def _tokenize(request: GenerationRequest, tokenizer: TextTokenizer) -> list[int]:
    if request.prompt is not None:
        return tokenizer.encode(request.prompt)
    if request.messages is not None:
        return tokenizer.encode_chat(request.messages)
    return request.prompt_token_ids or []
