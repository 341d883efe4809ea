"""Examples as token ids, and rows of them packed side by side."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tools.reasoning.vocabulary import ASSISTANT, CHARACTERS, END, TOKEN_IDS, USER
from zipage.bundled.tasks.example import END_THINK, THINK, Example

IGNORED = -100
"""The target of a token whose successor is not learned."""

PADDING_DOCUMENT = -1

_ID_OF_CODE = np.zeros(128, dtype=np.uint8)
_ID_OF_CODE[[ord(character) for character in CHARACTERS]] = [TOKEN_IDS[character] for character in CHARACTERS]


@dataclass(frozen=True, slots=True)
class Document:
    """Attributes:
    token_ids: [T] uint8, the whole chat, with the end token behind the answer.
    prompt_length: tokens of the user's part, up to and including the one that begins the assistant's.
    """

    token_ids: np.ndarray
    prompt_length: int


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Documents one behind the other, all [T].

    Attributes:
        token_ids: uint8; 0 behind the last document.
        documents: int32, which document a token belongs to, counted from 0, or `PADDING_DOCUMENT`.
        positions: int32, of a token in its document.
        targets: int64, the next token where it is the assistant's, otherwise `IGNORED`.
    """

    token_ids: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def encode(example: Example) -> Document:
    """The chat as the tokenizer's template writes it, and the assistant's part."""
    prompt = [_special(USER), _characters(example.prompt), _special(END, ASSISTANT)]
    reasoning = [_special(THINK), _characters(f"\n{example.reasoning}\n")]
    answer = [_special(END_THINK), _characters(f"\n{example.answer}"), _special(END)]
    return Document(np.concatenate([*prompt, *reasoning, *answer]), sum(map(len, prompt)))


def pack(documents: Iterable[Document], length: int) -> PackedRow:
    """A row of `length` tokens; what does not fit is cut off."""
    row = PackedRow(
        np.zeros(length, dtype=np.uint8),
        np.full(length, PADDING_DOCUMENT, dtype=np.int32),
        np.zeros(length, dtype=np.int32),
        np.full(length, IGNORED, dtype=np.int64),
    )
    start = 0
    for index, document in enumerate(documents):
        ids = document.token_ids[: length - start]
        end = start + len(ids)
        row.token_ids[start:end] = ids
        row.documents[start:end] = index
        row.positions[start:end] = np.arange(len(ids))
        learned = ids[document.prompt_length :]
        row.targets[end - 1 - len(learned) : end - 1] = learned
        start = end
    return row


def _special(*tokens: str) -> np.ndarray:
    return np.array([TOKEN_IDS[token] for token in tokens], dtype=np.uint8)


def _characters(text: str) -> np.ndarray:
    return _ID_OF_CODE[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
