"""The cases of the kernel benchmark: for every kernel the builder of its work and the shapes it is built for."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from tools import kernel_cases_attention as attention
from tools import kernel_cases_eviction as eviction
from tools import kernel_cases_layers as layers
from tools.kernel_work import Work

Shape = dict[str, Any]

DECODE: Shape = {"heads": 32, "head_dim": 128}
PREFILL: Shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
SCORES: Shape = {"layers": 36, "kv_heads": 8, "entries": 2304}
KEYS: Shape = {**SCORES, "head_dim": 128}
VOCABULARY: Shape = {"batch": 64, "vocabulary": 151_936}
DRAW: Shape = {**VOCABULARY, "spread": 3.0}


def grid(fixed: Shape, **values: tuple[float, ...]) -> list[Shape]:
    """One shape for every combination of values, the last one changing fastest."""
    return [{**dict(zip(values, chosen, strict=True)), **fixed} for chosen in product(*values.values())]


CASES: dict[str, tuple[Callable[..., Work], list[Shape]]] = {
    "paged_decode_attention": (
        attention.decode,
        [
            *grid(DECODE, group=(2, 4, 8), block_size=(16, 64, 256), batch=(32, 64, 128), context=(1024, 2048, 4096)),
            # As under a budget of 1,024 with blocks of 128, and as with full KV.
            *grid({**DECODE, "context": 1024, "shortest": 896, "block_size": 128}, group=(4, 8), batch=(32, 64, 128)),
            *grid({**DECODE, "context": 3328, "shortest": 256, "block_size": 64}, group=(4, 8), batch=(32, 64)),
        ],
    ),
    "paged_prefill_attention": (
        attention.prefill,
        grid({**PREFILL, "chunks": 1, "tokens": 4096}, block_size=(16, 64, 256)),
    ),
    "write_kv": (layers.write, grid({**PREFILL, "block_size": 64}, tokens=(64, 4096))),
    "rms_norm": (layers.norm, grid({"size": 4096}, tokens=(64, 4096))),
    "silu_multiply": (layers.activation, grid({"size": 12288}, tokens=(64, 4096))),
    # A layer of 1,024 hidden and 3,072 intermediate features, 16 heads, 8 KV heads.
    "small_product": (
        layers.product,
        [
            {"tokens": tokens, "outputs": outputs, "columns": columns, "follows": follows}
            for tokens in (64, 128)
            for outputs, columns, follows in (
                (4096, 1024, "nothing"),
                (1024, 2048, "add"),
                (3072, 1024, "gate"),
                (1024, 3072, "add"),
            )
        ],
    ),
    "greedy_tokens": (layers.greedy, [VOCABULARY]),
    "sample_tokens": (
        layers.draw,
        [
            {**DRAW, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
            {**DRAW, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
            {**DRAW, "temperature": 0.6, "top_k": 0, "top_p": 0.95},
            # A nucleus of tens of thousands of tokens.
            {**DRAW, "spread": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 0.95},
        ],
    ),
    "window_score": (eviction.window, grid({**KEYS, "heads": 32, "window": 16}, requests=(1, 4), block_size=(16, 256))),
    "accumulated_score": (eviction.accumulated, grid(SCORES, requests=(1, 4), block_size=(16, 256))),
    "pool_score": (eviction.pool, grid(SCORES, requests=(1, 4))),
    "full_similarity": (eviction.redundancy, grid({**KEYS, "full": True}, requests=(1, 4), block_size=(16, 256))),
    "lightning_similarity": (eviction.redundancy, grid({**KEYS, "full": False}, requests=(1, 4), block_size=(16, 256))),
    "anchor_score": (eviction.anchors, grid({**KEYS, "recent": 16}, requests=(1, 4), block_size=(16, 256))),
    "combine": (eviction.combination, grid(SCORES, requests=(1, 4))),
    "select_entries": (eviction.selection, grid({**SCORES, "keep": 2048, "recent": 16}, requests=(1, 4))),
    "compact": (
        eviction.compaction,
        grid({**KEYS, "keep": 2048}, requests=(1, 4), block_size=(16, 256), in_place=(False, True)),
    ),
}


def cases(kernels: tuple[str, ...]) -> Iterator[tuple[str, Callable[..., Work], Shape]]:
    """The cases of some kernels, or of all if none is named."""
    for kernel, (build, shapes) in CASES.items():
        if not kernels or kernel in kernels:
            for shape in shapes:
                yield kernel, build, shape
