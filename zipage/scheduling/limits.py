"""What one engine can take: the numbers that planning and admission work with."""

import itertools
from dataclasses import dataclass

from zipage.config import Compress, EngineConfig, ScoringOptions
from zipage.engine_messages import PoolGeometry, RefusedTokens, TokenRequest
from zipage.sampling_params import SamplingParams


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes of the pool and of a step.

    Attributes:
        num_blocks, block_size: the KV pool, `block_size` entries a block.
        num_query_slots: requests that can be promised a query buffer, without which none is compressed; 0 without a
            budget.
        num_query_buffers: one for each slot, and spare ones for shadow jobs.
        max_blocks_per_request: `N_max` of requests that bring no budget of their own, 0 without a budget.
        max_num_seqs: requests that hold a row of the decode worker.
        max_num_batched_tokens: tokens of one step.
        max_model_len: tokens of one sequence.
        max_steps_in_flight: steps that may be planned before the oldest of them has returned.
        prefix_caching: requests with equal prefixes share blocks.
        scoring: what is observed, for the numbers that a compression job names.
        compress: `always`, or only under `pressure`.
        max_shadow_blocks: blocks that jobs may hold beyond the requests' own; 0 is stall mode always.
        overlap: jobs run beside steps; otherwise both wait for each other.
        hybrid_scheduling: requests that can be compressed may begin without a query slot.
        num_host_blocks, num_host_slots: host memory for swapped requests.
        max_waiting: unfinished completions beyond `max_num_seqs`, 0 for any number.
    """

    num_blocks: int
    block_size: int
    num_query_slots: int
    num_query_buffers: int
    max_blocks_per_request: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_steps_in_flight: int
    prefix_caching: bool
    scoring: ScoringOptions
    compress: Compress = "always"
    max_shadow_blocks: int = 0
    overlap: bool = True
    hybrid_scheduling: bool = True
    num_host_blocks: int = 0
    num_host_slots: int = 0
    max_waiting: int = 0

    @classmethod
    def from_config(cls, config: EngineConfig, geometry: PoolGeometry, max_model_len: int) -> "SchedulerLimits":
        return cls(
            num_blocks=geometry.num_blocks,
            block_size=geometry.block_size,
            num_query_slots=geometry.num_query_slots,
            num_query_buffers=geometry.num_query_buffers,
            max_blocks_per_request=config.max_blocks_per_request,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=max_model_len,
            max_steps_in_flight=2 if config.plan_ahead else 1,
            # Accumulated attention lies beside the entries, where requests that share them would add theirs.
            prefix_caching=config.prefix_caching and not geometry.accumulate,
            scoring=config.scoring,
            compress=config.compress,
            max_shadow_blocks=config.max_shadow_blocks(geometry.num_blocks) if geometry.num_query_slots else 0,
            overlap=config.overlap,
            hybrid_scheduling=config.hybrid_scheduling,
            num_host_blocks=geometry.num_host_blocks,
            num_host_slots=geometry.num_host_slots,
            max_waiting=config.max_waiting,
        )

    @property
    def accumulates(self) -> bool:
        """Decode attention is added up beside the entries; no query is recorded."""
        return self.scoring.observe == "all"

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

    def refusal(self, request: TokenRequest) -> RefusedTokens | None:
        """Why the request can never run here, or None."""
        length = len(request.prompt_token_ids)
        if length >= self.max_model_len:
            message = (
                f"the prompt has {length} tokens; max_model_len {self.max_model_len} leaves room for prompts of 1 to "
                f"{self.max_model_len - 1}"
            )
            return RefusedTokens(request.uid, message, "prompt")
        if length > self.pool_tokens and not self.max_blocks(request.params):
            message = f"the prompt has {length} tokens; the KV cache holds 1 to {self.pool_tokens}"
            return RefusedTokens(request.uid, message, "prompt")
        if request.params.kv_budget:
            return self._budget_refusal(request.uid, request.params.kv_budget)
        return None

    def _budget_refusal(self, uid: int, kv_budget: int) -> RefusedTokens | None:
        if not self.num_query_slots:
            message = (
                f"kv_budget must be 0, not {kv_budget}, on an engine without query slots: one that was started "
                "without a kv_budget, or with one as long as max_model_len"
            )
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
        return self.scoring.sinks + self.scoring.recent_entries(keep, 0) <= keep
