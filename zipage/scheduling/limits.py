"""What one engine can take: the numbers that planning and admission work with."""

import itertools
from dataclasses import dataclass

from zipage.config import EngineConfig, ScoringOptions
from zipage.messages import PoolGeometry, RefusedTokens, TokenRequest
from zipage.sampling_params import SamplingParams
from zipage.scheduling.request import Request


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes of the pool and of a step.

    Attributes:
        num_blocks, block_size: the KV pool, `block_size` entries a block.
        num_query_slots: requests that can be compressed at the same time; 0 without a budget.
        max_blocks_per_request: `N_max` of requests that bring no budget of their own, 0 without a budget.
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

    def blocks_for(self, entries: int) -> int:
        """Blocks that hold `entries` entries."""
        return -(-entries // self.block_size)

    def max_blocks(self, params: SamplingParams) -> int:
        """`N_max` of a request: its own budget in whole blocks, or the engine's."""
        if params.kv_budget is None:
            return self.max_blocks_per_request
        return self.blocks_for(params.kv_budget)

    def max_length(self, request: TokenRequest) -> int:
        """Tokens, prompt included, at which the completion ends with reason `length`."""
        length = self.max_model_len
        if request.params.max_tokens is not None:
            length = min(length, len(request.prompt_token_ids) + request.params.max_tokens)
        if not self.max_blocks(request.params):
            # The last token is never computed, so it needs no entry.
            length = min(length, self.pool_tokens + 1)
        return length

    def can_compress(self, request: Request) -> bool:
        """Whether the completion can fill its budget and go on."""
        return 0 < request.max_blocks * self.block_size < request.max_length - 1

    def first_peak(self, request: Request) -> int:
        """Most blocks that the completion holds up to its first compression, or its end."""
        at_end = self.blocks_for(request.max_length - 1)
        if not request.max_blocks:
            return at_end
        return min(at_end, max(request.max_blocks, self.blocks_for(request.prompt_length)))

    def reusable_tokens(self, request: Request) -> int:
        """Most leading tokens whose entries the request may take from others instead of computing them.

        The last token is computed in any case, because it gives logits, and so are those whose queries a compression
        observes: the last `window` of the prompt, or with `observe=spread` queries from everywhere in it.
        """
        if not self.prefix_caching:
            return 0
        if not self.can_compress(request):
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
            return RefusedTokens(request.uid, message, "prompt")
        if length > self.pool_tokens:
            message = f"the prompt has {length} tokens; the KV cache holds 1 to {self.pool_tokens}"
            return RefusedTokens(request.uid, message, "prompt")
        if request.params.kv_budget:
            return self._budget_refusal(request.uid, request.params.kv_budget)
        return None

    def _budget_refusal(self, uid: int, kv_budget: int) -> RefusedTokens | None:
        if not self.num_query_slots:
            message = f"kv_budget must be 0 on an engine that was started without a budget, not {kv_budget}"
            return RefusedTokens(uid, message, "kv_budget")
        smallest = next(count for count in itertools.count(2) if self._can_keep(count))
        if not smallest <= self.blocks_for(kv_budget) <= self.num_blocks:
            least, most = (smallest - 1) * self.block_size + 1, self.pool_tokens
            message = f"kv_budget must be 0 or in [{least}, {most}] on this engine, not {kv_budget}"
            return RefusedTokens(uid, message, "kv_budget")
        return None

    def _can_keep(self, max_blocks: int) -> bool:
        """Whether a compression to `max_blocks - 1` blocks has room for the entries that are always kept."""
        keep = (max_blocks - 1) * self.block_size
        return self.scoring.sinks + self.scoring.recent_entries(keep) <= keep
