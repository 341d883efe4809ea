"""Budgets in tokens, or as a share of the mean final length of the answers they are for."""

import math
from dataclasses import dataclass

import click

from zipage.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Budget:
    """What was asked for.

    Attributes:
        text: as it was given.
        amount: most resident entries of a request, in tokens, or a share of the mean final length, in (0, 1].
        is_share: which of the two; the final length is that of prompt and output.
    """

    text: str
    amount: float
    is_share: bool

    def for_length(self, mean_length: float | None) -> int:
        """The budget in tokens, not yet rounded up to whole blocks.

        Args:
            mean_length: mean final length in tokens; needed for a share.

        Raises:
            click.UsageError: it is a share, and the length is not known.
        """
        if not self.is_share:
            return int(self.amount)
        if mean_length is None:
            raise click.UsageError(f"budget {self.text} needs the lengths of full KV, which --no-full leaves out")
        return math.ceil(self.amount * mean_length)


@dataclass(frozen=True, slots=True)
class ResidentEntries:
    """What the engine makes of a budget, for each layer and KV head.

    Attributes:
        budget: most entries of a request, in whole blocks, the block that is being filled included (`N_max * b`).
            More are resident while a prompt is computed, or while a request decodes beside its own compression.
        kept: entries right after a compression, one block less (`(N_max - 1) * b`).
    """

    budget: int
    kept: int

    @classmethod
    def from_config(cls, config: EngineConfig) -> "ResidentEntries":
        return cls(config.effective_kv_budget, config.effective_kv_budget - config.block_size)


def parse_budget(text: str) -> Budget:
    """Parse `25%` or a number of tokens such as `512`.

    Raises:
        click.BadParameter: it is neither.
    """
    try:
        if text.endswith("%"):
            share = float(text[:-1]) / 100
            if 0 < share <= 1:
                return Budget(text, share, is_share=True)
        elif int(text) > 0:
            return Budget(text, int(text), is_share=False)
    except ValueError:
        pass
    raise click.BadParameter(f"budget {text!r} must be a share in (0%, 100%] or a number of tokens of at least 1")
