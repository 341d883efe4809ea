"""Training batches made on the fly: the batch of a step depends on the seed and the step alone."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tools.reasoning.encoding import Document, PackedRow, encode, pack
from tools.reasoning.schedule import SHORTEST, trace_size
from zipage.bundled.tasks.families import FAMILIES

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
    """`rows` sequences of `length` tokens; `steps` is how many batches a whole training has.

    Traces grow longer over the first part of the training, unless it begins with weights that know short ones
    (`grows`).
    """

    rows: int
    length: int
    steps: int
    grows: bool = True

    def progress(self, step: int) -> float:
        """What the lengths of a step's traces depend on (`schedule.trace_size`), in [0, 1]."""
        return step / self.steps if self.grows else 1.0


class TrainingBatches(Dataset[Batch]):
    """Item `i` is the batch of step `i`, whoever makes it: worker processes change nothing, nor does resuming."""

    def __init__(self, shape: BatchShape, seed: int) -> None:
        self.shape = shape
        self.seed = seed

    def __len__(self) -> int:
        return self.shape.steps

    def __getitem__(self, step: int) -> Batch:
        rng = random.Random(f"{self.seed} train {step}")
        filler = RowFiller(rng, self.shape.progress(step))
        rows = [pack(filler.documents(self.shape.length), self.shape.length) for _ in range(self.shape.rows)]
        return stack(rows)


class RowFiller:
    """Draws documents of random families for one row after the other."""

    def __init__(self, rng: random.Random, progress: float) -> None:
        """`progress` is what `BatchShape.progress` gives."""
        self._rng = rng
        self._progress = progress
        self._families = list(FAMILIES.values())
        self._size = trace_size(rng, progress)

    def documents(self, length: int) -> Iterator[Document]:
        """Documents that fill `length` tokens but for a remainder that is too short for one.

        One that would not fit is the first of the next row, and one that about fits takes its place, so that long
        traces are not drawn less often than short ones.
        """
        left = length
        while (room := int(ROOM_FOR_PROMPT * left)) > SHORTEST:
            size = self._size
            if size > room:
                size = room
            else:
                self._size = trace_size(self._rng, self._progress)
            document = encode(self._rng.choice(self._families)(self._rng, size))
            yield document
            left -= len(document.token_ids)


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
