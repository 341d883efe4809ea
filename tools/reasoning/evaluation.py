"""Accuracy on held-out prompts, with one forward pass for a whole answer.

Every prompt has one right continuation. Greedy decoding writes it exactly when, given the right tokens so far, the most
likely next token is right at every place: the first wrong one would be the same in both. So whole answers need no
decoding, and agree with it up to rounding.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tools.reasoning.batches import Batch, stack
from tools.reasoning.encoding import Document, encode, pack
from tools.reasoning.vocabulary import TOKEN_IDS
from zipage.bundled.tasks.families import FAMILIES

Predict = Callable[[Batch], np.ndarray]
"""The most likely next token behind each token of a batch, [B, T]."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of the assistant's lines, and of whole answers, that are right to the last token."""

    lines: float
    answers: float


def held_out(family: str, count: int, shortest: int, longest: int, seed: int) -> list[Document]:
    """Documents that training with the same seed does not draw; reasoning of about `shortest` to `longest` tokens."""
    rng = random.Random(f"{seed} held out {family}")
    return [encode(FAMILIES[family](rng, rng.randint(shortest, longest))) for _ in range(count)]


def measure(predict: Predict, documents: list[Document], rows: int, length: int) -> Accuracy:
    """Teacher-forced accuracy.

    Args:
        predict: is called with batches of [rows, length].
        documents: none longer than `length`.
        rows: of a batch.
        length: of a row.
    """
    lines: list[np.ndarray] = []
    answers = []
    for group in _batches(_rows(documents, length), rows):
        predicted = predict(stack([pack(row, length) for row in group]))
        for row, tokens in zip(group, predicted, strict=True):
            end = 0
            for document in row:
                start, end = end, end + len(document.token_ids)
                right = tokens[start + document.prompt_length - 1 : end - 1] == _learned(document)
                answers.append(bool(right.all()))
                lines.append(np.logical_and.reduceat(right, _line_starts(document)))
    return Accuracy(float(np.concatenate(lines).mean()), sum(answers) / len(answers))


def _learned(document: Document) -> np.ndarray:
    return document.token_ids[document.prompt_length :]


def _line_starts(document: Document) -> np.ndarray:
    """Where the assistant's lines begin; a newline belongs to the line that it ends."""
    return np.concatenate(([0], np.flatnonzero(_learned(document) == TOKEN_IDS["\n"]) + 1))


def _rows(documents: list[Document], length: int) -> Iterator[list[Document]]:
    """Whole documents in order, as many in a row as fit."""
    row: list[Document] = []
    for document in documents:
        if sum(len(each.token_ids) for each in [*row, document]) > length:
            yield row
            row = []
        row.append(document)
    yield row


def _batches(rows: Iterator[list[Document]], size: int) -> Iterator[list[list[Document]]]:
    """`size` rows at a time, the last batch filled with empty ones."""
    gathered = list(rows)
    for first in range(0, len(gathered), size):
        group = gathered[first : first + size]
        yield group + [[] for _ in range(size - len(group))]
