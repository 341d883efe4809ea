"""Ways of scheduling that are compared: an engine's options for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zipage.config import EngineConfig
from zipage.execution.pool_size import GIB, choose_geometry, effective_max_model_len
from zipage.models.config import ModelConfig
from zipage.scheduling.limits import SchedulerLimits


@dataclass(frozen=True)
class EngineSize:
    """What all policies of a comparison have in common; the budget and the longest sequence are in tokens."""

    pool_gib: float
    swap_gib: float
    kv_budget: int
    block_size: int
    max_num_seqs: int
    max_model_len: int


def policies(pressure: bool, hybrid: bool) -> dict[str, Mapping[str, Any]]:
    """Engine options by name of the policy: as in the paper (arXiv 2603.08743), ours, and without a budget.

    `pressure` is for ours alone, `hybrid` for both that have a budget.
    """
    return {
        "paper": {"plan_ahead": False, "shadow_share": 0.0, "hybrid_scheduling": hybrid},
        "ours": {"compress": "pressure" if pressure else "always", "hybrid_scheduling": hybrid},
        "full KV": {"kv_budget": 0},
    }


def engine_limits(model: ModelConfig, size: EngineSize, options: Mapping[str, Any]) -> SchedulerLimits:
    """What the scheduler of such an engine works with.

    Raises:
        ConfigError: an option is outside its range, or the pool does not hold one request.
    """
    fields = {
        "max_num_seqs": size.max_num_seqs,
        "kv_budget": size.kv_budget,
        "block_size": size.block_size,
        "max_model_len": size.max_model_len,
    }
    config = EngineConfig(model="simulated", **(fields | dict(options)))
    swap_bytes = int(size.swap_gib * GIB)
    geometry = choose_geometry(config, model, model.dtype, int(size.pool_gib * GIB), swap_bytes)
    return SchedulerLimits.from_config(config, geometry, effective_max_model_len(config, model, geometry))
