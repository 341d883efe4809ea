"""Training batches made on the fly: the batch of a step depends on the seed and the step alone."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tools.reasoning.encoding import Document, PackedRow, encode, pack
from tools.reasoning.families import FAMILIES
from tools.reasoning.schedule import SHORTEST, trace_size

ROOM_FOR_PROMPT = 0.85
"""Of the room left in a row, what a trace may take, so that its prompt mostly fits too."""

BATCHES_AHEAD = 4


class Batch(NamedTuple):
    """Packed rows [B, T]; the fields are those of `encoding.PackedRow`."""

    token_ids: torch.Tensor
    documents: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchShape:
    """`rows` sequences of `length` tokens; `steps` is how many batches a whole training has."""

    rows: int
    length: int
    steps: int


class TrainingBatches(Dataset[Batch]):
    """Item `i` is the batch of step `i`, whoever makes it: worker processes change nothing, nor does resuming."""

    def __init__(self, shape: BatchShape, seed: int) -> None:
        self.shape = shape
        self.seed = seed

    def __len__(self) -> int:
        return self.shape.steps

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed} train {step}")
        progress = step / self.shape.steps
        rows = [pack(_fill(rng, self.shape.length, progress), self.shape.length) for _ in range(self.shape.rows)]
        return stack(rows)


def stack(rows: list[PackedRow]) -> Batch:
    """Rows of the same length as one batch."""
    fields = ("token_ids", "documents", "positions", "targets")
    return Batch(*(torch.from_numpy(np.stack([getattr(row, field) for row in rows])) for field in fields))


def load(batches: TrainingBatches, first_step: int, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """The batches from `first_step` on, in order, made by `workers` processes (0 for this one)."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, len(batches)),
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD if workers else None,
        pin_memory=pin_memory,
    )
    return iter(loader)


def _fill(rng: random.Random, length: int, progress: float) -> Iterator[Document]:
    """Documents of random families that fill `length` tokens but for a remainder that is too short for one."""
    families = list(FAMILIES.values())
    left = length
    while (room := int(ROOM_FOR_PROMPT * left)) > SHORTEST:
        document = encode(rng.choice(families)(rng, min(room, trace_size(rng, progress))))
        yield document
        left -= len(document.token_ids)
