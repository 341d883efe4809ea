"""Engine options: one immutable struct that every process reads, checked once when it is made."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from zipage.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
Observe = Literal["last", "spread", "all"]
Reduce = Literal["mean", "max"]
Pooling = Literal["off", "first", "always"]
Redundancy = Literal["off", "full", "lightning"]
Order = Literal["score", "random"]
Compress = Literal["always", "pressure"]
Mps = Literal["auto", "on", "off"]

BLOCK_SIZES = (8, 16, 32, 64, 128, 256)


def _check(field: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if not low <= value <= high or math.isinf(value):
        bound = "inf)" if math.isinf(high) else f"{high}]"
        raise ConfigError(f"{field} must be in [{low}, {bound}, not {value}")


class ScoringOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the entries that survive a compression are chosen (docs/architecture.md has the formulas).

    Attributes:
        observe: which queries are observed: the `last` `window`, up to `window` `spread` evenly over the interval
            since the last compression, or `all` of them (the last `window` of the prompt and every later one),
            accumulated by decode attention.
        window: `w`, how many queries a query slot holds; even, 2 to 1024.
        reduce: over the observed queries, the `mean` or the `max` of an entry's probability; with `observe=all` it is
            always the mean.
        decay: gamma of the global score, in [0, 1]; 0 is no global score.
        pooling: max-pool the score over 5 neighbours never, at a request's first compression, or always.
        redundancy: compare keys with no, all, or only the keys of their own block.
        attention_weight: lambda, the weight of the attention score against redundancy, in [0, 1].
        similarity_threshold: tau, the cosine above which a key counts as similar, in [-1, 1].
        redundancy_temperature: divides the mean similarity before its softmax; > 0.
        sinks: the first entries, always kept.
        recent: the last entries, always kept; `None` is `window`.
        recent_share: always keep at least this share of the room as the recent part, in [0, 1]. The room are the kept
            entries that a pinned prompt leaves, or a quarter of those that are kept, whichever is more.
        anchor_share: share of the room, in [0, 1], for anchors: entries whose keys have much content that no later key
            has. They come behind sinks, recent entries and a pinned prompt, before all others.
        anchor_layers: share of the layers, from the first one on, in [0, 1], that keep anchors.
        pin_share: share of the kept entries, in [0, 1], up to which the prompt's first ones are pinned: kept ahead of
            everything but sinks and recent entries. What is longer competes with the rest.
        order: what decides between entries that come behind all of these: their `score`, or, for comparison, a `random`
            number that each key has for good.
    """

    observe: Observe = "last"
    window: int = 16
    reduce: Reduce = "max"
    decay: float = 0.9
    pooling: Pooling = "off"
    redundancy: Redundancy = "off"
    attention_weight: float = 0.2
    similarity_threshold: float = 0.5
    redundancy_temperature: float = 0.4
    sinks: int = 4
    recent: int | None = None
    recent_share: float = 0.2
    anchor_share: float = 0.45
    anchor_layers: float = 0.75
    pin_share: float = 0.25
    order: Order = "score"

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is outside its range."""
        _check("window", self.window, 2, 1024)
        if self.window % 2:
            raise ConfigError(f"window must be even, not {self.window}")
        _check("decay", self.decay, 0, 1)
        _check("attention_weight", self.attention_weight, 0, 1)
        _check("similarity_threshold", self.similarity_threshold, -1, 1)
        _check("redundancy_temperature", self.redundancy_temperature, 1e-6, math.inf)
        _check("sinks", self.sinks, 0, math.inf)
        _check("recent", self.recent, 0, math.inf)
        _check("pin_share", self.pin_share, 0, 1)
        _check("recent_share", self.recent_share, 0, 1)
        _check("anchor_share", self.anchor_share, 0, 1)
        _check("anchor_layers", self.anchor_layers, 0, 1)

    def pinned_entries(self, keep: int, num_pinned: int) -> int:
        """How many of the `num_pinned` leading entries that are the prompt's are pinned where `keep` survive."""
        return min(num_pinned, int(self.pin_share * keep))

    def recent_entries(self, keep: int, num_pinned: int) -> int:
        """How many of `keep` surviving entries are the most recent ones whatever their score.

        Args:
            keep: entries that survive.
            num_pinned: leading entries that are the prompt's.
        """
        recent = self.window if self.recent is None else self.recent
        return max(recent, round(self.recent_share * self._room(keep, num_pinned)))

    def anchor_entries(self, keep: int, num_pinned: int) -> int:
        """How many of `keep` surviving entries are anchors, where sinks, recent entries and prompt leave so many."""
        return round(self.anchor_share * self._room(keep, num_pinned))

    def layers_with_anchors(self, num_layers: int) -> int:
        """How many layers of a model with `num_layers`, from the first one on, keep anchors."""
        return round(self.anchor_layers * num_layers) if self.anchor_share else 0

    def _room(self, keep: int, num_pinned: int) -> int:
        return max(keep - self.pinned_entries(keep, num_pinned), keep // 4)


PAPER_SCORING = ScoringOptions(
    observe="last",
    window=16,
    reduce="mean",
    decay=0.8,
    pooling="first",
    redundancy="lightning",
    recent_share=0.0,
    anchor_share=0.0,
    pin_share=0.0,
)
SCORING_PRESETS = {"default": ScoringOptions(), "paper": PAPER_SCORING}


def explain(error: msgspec.ValidationError, options: type[msgspec.Struct], fields: Mapping[str, Any]) -> str:
    """Why `fields` are no `options`; of one that has other values than its own, all that are allowed."""
    for name, allowed in get_type_hints(options).items():
        if get_origin(allowed) is Literal and name in fields and fields[name] not in get_args(allowed):
            return f"{name} must be one of {', '.join(get_args(allowed))}, not {fields[name]!r}"
    return str(error)


def parse_scoring(text: str) -> ScoringOptions:
    """Parse `PRESET[,field=value...]`, for example `paper,window=32,redundancy=full`.

    Raises:
        ConfigError: an unknown preset or field, or a value outside its range.
    """
    preset, *assignments = text.split(",")
    if preset not in SCORING_PRESETS:
        raise ConfigError(f"scoring must start with one of {', '.join(SCORING_PRESETS)}, not {preset!r}")
    fields = msgspec.to_builtins(SCORING_PRESETS[preset])
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if name not in fields or not separator:
            raise ConfigError(f"scoring option {assignment!r} is not field=value with a field of {', '.join(fields)}")
        fields[name] = value
    try:
        return msgspec.convert(fields, ScoringOptions, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"scoring: {explain(error, ScoringOptions, fields)}") from None


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every option of an engine.

    Attributes:
        model: a local directory or a Hugging Face hub id.
        revision: branch, tag or commit of a hub id.
        max_model_len: most tokens of one sequence, prompt and output together; `None` is the model's own limit.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: most tokens computed in one step; longer prompts are prefilled in chunks. With fewer
            tokens than running requests, those that decode come before prompts, and wait for each other in order.
        dtype: of weights and KV cache; `auto` is the checkpoint's on a GPU and float32 on a CPU.
        device: `auto` is a GPU where there is one.
        seed: seeds the requests that bring no seed of their own.
        kv_budget: most KV entries that a request keeps resident, in tokens; rounded up to whole blocks; 0 is no limit.
        block_size: tokens per KV block, a power of two from 8 to 256.
        plan_ahead: send the next step to the decode worker before the tokens of the last one are back.
        prefix_caching: share KV blocks between requests whose tokens begin alike; off where attention is accumulated
            (`observe=all` under a budget). A request that can be compressed computes at least the last `window` tokens
            of its prompt, whose queries are observed, and with `observe=spread` all of them.
        kv_cache_gb: memory for the KV cache in GiB (2**30 bytes); `None` is chosen from free memory.
        gpu_memory_utilization: share of a GPU's memory, in (0, 1], that all of the engine may use; where `kv_cache_gb`
            is not given, the KV cache gets what weights and the largest step leave of it.
        scoring: how a compression chooses the entries that survive.
        compress: `always` when a request has filled its budget, or only under `pressure`, when blocks run short.
        shadow_share: share of the KV blocks, 0 to 1, that compressions may take beyond the requests' own, so that their
            requests go on decoding meanwhile; without such blocks a request waits for its compression. Requests without
            a query slot leave them free. Accumulated attention (`observe=all`) always waits.
        overlap: compress while decoding goes on. Off, for comparison: while a compression or a swap is due or at work,
            no step is computed, and none of these begins before the steps that were planned have been.
        hybrid_scheduling: under a budget, requests without a query slot run on blocks that nobody needs yet.
        swap_space_gb: host memory in GiB for the KV cache of preempted requests that have been compressed; `None` is
            an eighth of the free memory up to 4 GiB, 0 recomputes and compresses them anew instead.
        max_waiting: most completions that may wait for admission, beyond which more are refused; 0 is no limit.
        mps: run compression beside decoding on a GPU through CUDA MPS: `auto` where the machine has it, `on` or not at
            all, `off` never; without MPS the two take turns. The engine starts a daemon of its own, unless
            CUDA_MPS_PIPE_DIRECTORY names one in the environment.
        mps_thread_percentage: share of the GPU's multiprocessors, in percent, that compression may use under MPS;
            `None` is no limit.
        ready_timeout: seconds until every process must be ready, at the start and when one is started again.
        threads: CPU threads of the decode worker; 0 is one per core.
        trace: a directory into which every process writes what it did and when, for `tools.profile_pipeline`; `None`
            is no tracing.
    """

    model: str
    revision: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    dtype: DType = "auto"
    device: Device = "auto"
    seed: int = 0
    kv_budget: int = 0
    block_size: int = 16
    plan_ahead: bool = True
    prefix_caching: bool = True
    kv_cache_gb: float | None = None
    gpu_memory_utilization: float = 0.9
    scoring: ScoringOptions = ScoringOptions()
    compress: Compress = "always"
    shadow_share: float = 0.1
    overlap: bool = True
    hybrid_scheduling: bool = True
    swap_space_gb: float | None = None
    max_waiting: int = 0
    mps: Mps = "auto"
    mps_thread_percentage: int | None = None
    ready_timeout: float = 300.0
    threads: int = 0
    trace: str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is outside its range or contradicts another."""
        if not self.model:
            raise ConfigError("model must be a directory or a hub id, not an empty string")
        _check("max_model_len", self.max_model_len, 2, math.inf)
        _check("max_num_seqs", self.max_num_seqs, 1, 65536)
        _check("max_num_batched_tokens", self.max_num_batched_tokens, 1, math.inf)
        _check("seed", self.seed, 0, 2**63 - 1)
        _check("kv_budget", self.kv_budget, 0, math.inf)
        _check("kv_cache_gb", self.kv_cache_gb, 1e-6, math.inf)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization must be in (0, 1], not {self.gpu_memory_utilization}")
        _check("shadow_share", self.shadow_share, 0, 1)
        _check("swap_space_gb", self.swap_space_gb, 0, math.inf)
        _check("max_waiting", self.max_waiting, 0, math.inf)
        _check("mps_thread_percentage", self.mps_thread_percentage, 1, 100)
        _check("ready_timeout", self.ready_timeout, 0.1, math.inf)
        _check("threads", self.threads, 0, 4096)
        if self.block_size not in BLOCK_SIZES:
            raise ConfigError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, not {self.block_size}")
        if self.kv_budget:
            self._check_budget()
        self._check_mps()

    @property
    def max_blocks_per_request(self) -> int:
        """`N_max`, the blocks of a request that is compressed; 0 where there is no budget."""
        return -(-self.kv_budget // self.block_size)

    @property
    def effective_kv_budget(self) -> int:
        """`kv_budget` rounded up to whole blocks, in tokens."""
        return self.max_blocks_per_request * self.block_size

    def max_shadow_blocks(self, num_blocks: int) -> int:
        """Of `num_blocks` KV blocks, those that compressions may take so that their requests go on decoding."""
        # While a job reads accumulated attention, nobody may add to it.
        return int(self.shadow_share * num_blocks) if self.overlap and self.scoring.observe != "all" else 0

    def _check_budget(self) -> None:
        if self.max_blocks_per_request < 2:
            raise ConfigError(
                f"kv_budget must be 0 or more than one block ({self.block_size} tokens), not {self.kv_budget}"
            )
        keep = self.effective_kv_budget - self.block_size
        always_kept = self.scoring.sinks + self.scoring.recent_entries(keep, 0)
        if always_kept > keep:
            raise ConfigError(
                f"kv_budget {self.kv_budget} keeps {keep} entries at a compression, fewer than the {always_kept} that "
                "scoring.sinks and scoring.recent always keep"
            )

    def _check_mps(self) -> None:
        if self.mps == "on" and self.device == "cpu":
            raise ConfigError("mps is on, but device is cpu; with device cpu, mps must be auto or off")
        if self.mps == "off" and self.mps_thread_percentage is not None:
            raise ConfigError("mps_thread_percentage needs mps, which is off; allowed with mps auto or on")
