"""What one engine can take: the numbers that planning and admission work with."""

from dataclasses import dataclass

from zipage.config import EngineConfig, ScoringOptions
from zipage.messages import PoolGeometry, RefusedTokens, TokenRequest
from zipage.scheduling.request import Request


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes of the pool and of a step.

    Attributes:
        num_blocks, block_size: the KV pool, `block_size` entries a block.
        num_query_slots: requests that can be compressed at the same time; 0 without a budget.
        max_blocks_per_request: `N_max`, 0 without a budget.
        max_num_seqs: requests that hold a row of the decode worker.
        max_num_batched_tokens: tokens of one step.
        max_model_len: tokens of one sequence.
        max_steps_in_flight: steps that may be planned before the oldest of them has returned.
        prefix_caching: requests with equal prefixes share blocks.
        scoring: what is observed, for the numbers that a compression job names.
    """

    num_blocks: int
    block_size: int
    num_query_slots: int
    max_blocks_per_request: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_steps_in_flight: int
    prefix_caching: bool
    scoring: ScoringOptions

    @classmethod
    def from_config(cls, config: EngineConfig, geometry: PoolGeometry, max_model_len: int) -> "SchedulerLimits":
        return cls(
            num_blocks=geometry.num_blocks,
            block_size=geometry.block_size,
            num_query_slots=geometry.num_query_slots,
            max_blocks_per_request=config.max_blocks_per_request,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            max_steps_in_flight=2 if config.plan_ahead else 1,
            # Accumulated attention lies beside the entries, where requests that share them would add theirs.
            prefix_caching=config.prefix_caching and not geometry.accumulate,
            scoring=config.scoring,
        )

    @property
    def pool_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def budget_tokens(self) -> int:
        """Most resident entries of a compressed request; 0 without a budget."""
        return self.max_blocks_per_request * self.block_size

    def blocks_for(self, entries: int) -> int:
        """Blocks that hold `entries` entries."""
        return -(-entries // self.block_size)

    def max_length(self, request: TokenRequest) -> int:
        """Tokens, prompt included, at which the completion ends with reason `length`."""
        length = self.max_model_len
        if request.params.max_tokens is not None:
            length = min(length, len(request.prompt_token_ids) + request.params.max_tokens)
        if not self.max_blocks_per_request:
            # The last token is never computed, so it needs no entry.
            length = min(length, self.pool_tokens + 1)
        return length

    def can_compress(self, max_length: int) -> bool:
        """Whether a completion of at most `max_length` tokens can fill its budget and go on."""
        return 0 < self.budget_tokens < max_length - 1

    def first_peak(self, prompt_length: int, max_length: int) -> int:
        """Most blocks that the completion holds up to its first compression."""
        grown = max(self.max_blocks_per_request, self.blocks_for(prompt_length))
        return min(grown, self.blocks_for(max_length - 1))

    def reusable_tokens(self, request: Request) -> int:
        """Most leading tokens whose entries the request may take from others instead of computing them.

        The last token is computed in any case, because it gives logits, and so are those whose queries a compression
        observes: the last `window` of the prompt, or with `observe=spread` queries from everywhere in it.
        """
        if not self.prefix_caching:
            return 0
        if not self.can_compress(request.max_length):
            return len(request.token_ids) - 1
        if self.scoring.observe == "spread":
            return 0
        return max(0, request.prompt_length - self.scoring.window)

    def refusal(self, request: TokenRequest) -> RefusedTokens | None:
        """Why the request can never run here, or None."""
        length = len(request.prompt_token_ids)
        if length >= self.max_model_len:
            message = (
                f"the prompt has {length} tokens; max_model_len {self.max_model_len} leaves room for prompts of 1 to "
                f"{self.max_model_len - 1}"
            )
        elif length > self.pool_tokens:
            message = f"the prompt has {length} tokens; the KV cache holds 1 to {self.pool_tokens}"
        else:
            return None
        return RefusedTokens(request.uid, message, "prompt")
