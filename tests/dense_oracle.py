"""What an engine with eviction must answer, computed without pages, blocks, batches or any code of the engine.

`dense_generate` keeps dense keys and values per layer and KV head, and decodes greedily one token at a time with a
forward pass of its own over the weights of a transformers model (Llama, Qwen2, Qwen3). The scoring formulas are written
once more here, head by head, so that a mistake in the engine's has nothing to agree with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from zipage.config import ScoringOptions


@dataclass
class OracleResult:
    """Generated tokens, and of each compression and each layer the positions that survived, `[Hkv, keep]` int64."""

    tokens: list[int]
    kept_positions: list[list[torch.Tensor]]


@dataclass
class DenseLayer:
    """One layer's entries in buffers of `[Hkv, capacity, ...]` of which the first `length` count.

    `scores` are those of the entries that survived the last compression, `[Hkv, survivors]`; `queries` all of the
    interval's, each `[t, Hq, d]`.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    queries: list[torch.Tensor] = field(default_factory=list)
    length: int = 0


@dataclass
class Eviction:
    """A choice that has been made and not yet taken effect.

    `kept` and `scores` are of each layer, `[Hkv, keep]`, among its first `num_entries`.
    """

    num_entries: int
    kept: list[torch.Tensor]
    scores: list[torch.Tensor]
    delay: int


@dataclass
class Evictor:
    """When and what to evict. `interval_start` is the position of the first query since the last choice.

    `chunk` are the entries beyond its budget that a prompt fills before it is compressed. `delays` are, for each
    compression in turn, the tokens that are computed between its choice and its effect; none where it runs out.
    `lengths` are the entries at which it is compressed each time, where that is not to be worked out here.
    """

    scoring: ScoringOptions
    block_size: int
    max_blocks: int
    prompt_length: int
    chunk: int
    delays: list[int]
    lengths: list[int] | None
    interval_start: int = 0
    due: int | None = None

    def room(self, length: int, position: int) -> int | None:
        """Entries that are computed before the next choice, None for any number."""
        if not self.max_blocks:
            return None
        if self.due is None and self.lengths is not None:
            self.due = self.lengths.pop(0) if self.lengths else 1 << 30
        if self.due is None:
            full, end = self.max_blocks * self.block_size, length + max(0, self.prompt_length - position)
            self.due = full + self.chunk
            if end <= self.due:
                self.due = max(full, -(-end // self.block_size) * self.block_size)
        return self.due - length

    def choose(self, layers: list[DenseLayer], next_position: int) -> Eviction:
        delay = self.delays.pop(0) if self.delays else 0
        has_anchors = [number < round(self.scoring.anchor_layers * len(layers)) for number in range(len(layers))]
        chosen = [self._choose_in_layer(*each, next_position) for each in zip(layers, has_anchors, strict=True)]
        self.interval_start = next_position
        return Eviction(layers[0].length, [kept for kept, _ in chosen], [scores for _, scores in chosen], delay)

    def evict(self, layers: list[DenseLayer], eviction: Eviction) -> list[torch.Tensor]:
        """Drop what was not kept; what was computed after the choice follows the survivors. Returns kept positions."""
        self.due = None
        keep = (self.max_blocks - 1) * self.block_size
        for layer, kept, scores in zip(layers, eviction.kept, eviction.scores, strict=True):
            tail = layer.length - eviction.num_entries
            for head, indices in enumerate(kept):
                for buffer in (layer.keys, layer.values, layer.positions):
                    after = buffer[head, eviction.num_entries : layer.length].clone()
                    buffer[head, :keep] = buffer[head, indices].clone()
                    buffer[head, keep : keep + tail] = after
            layer.scores, layer.length = scores, keep + tail
        return [layer.positions[:, :keep].clone() for layer in layers]

    def _choose_in_layer(
        self, layer: DenseLayer, has_anchors: bool, next_position: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        queries = torch.cat(layer.queries)
        layer.queries = []
        survivors = layer.scores.shape[1]
        prompt_end = min(self.prompt_length, next_position)
        observed = observed_indices(self.scoring, len(queries), self.interval_start, prompt_end)
        positions = layer.positions[:, : layer.length]
        return choose_survivors(
            layer.keys[:, : layer.length],
            queries[observed],
            [survivors + index for index in observed],
            layer.scores,
            self.scoring,
            self.block_size,
            (self.max_blocks - 1) * self.block_size,
            self._num_pinned(positions),
            has_anchors,
        )

    def _num_pinned(self, positions: torch.Tensor) -> list[int]:
        """Of each head, from its entries' positions `[Hkv, n]`."""
        most = int(self.scoring.pin_share * (self.max_blocks - 1) * self.block_size)
        return [min(int((row < self.prompt_length).sum()), most) for row in positions]


def observed_indices(scoring: ScoringOptions, count: int, interval_start: int, prompt_end: int) -> list[int]:
    """Which of the interval's `count` queries are observed, as interval indices."""
    if scoring.observe == "all":
        return [i for i in range(count) if interval_start + i >= prompt_end - scoring.window]
    if scoring.observe == "last":
        return list(range(count))[-scoring.window :]
    stride = 1
    while len(range(0, count, stride)) > scoring.window:
        stride *= 2
    return list(range(0, count, stride))


def choose_survivors(
    keys: torch.Tensor,
    queries: torch.Tensor,
    query_indices: list[int],
    old_scores: torch.Tensor,
    scoring: ScoringOptions,
    block_size: int,
    keep: int,
    num_pinned: list[int],
    has_anchors: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Survivors `[Hkv, keep]` of one layer and their scores, from keys `[Hkv, n, d]` and queries `[m, Hq, d]`.

    `query_indices[i]` is the last entry that query `i` sees; `old_scores` is `[Hkv, survivors]`; `num_pinned` is per
    head; `has_anchors` says whether the layer keeps any.
    """
    group = queries.shape[1] // keys.shape[0]
    kept, scores = [], []
    for head in range(keys.shape[0]):
        score = attention_score(queries[:, head * group : (head + 1) * group], query_indices, keys[head], scoring)
        survivors = old_scores.shape[1]
        score = torch.cat([torch.max(score[:survivors], scoring.decay * old_scores[head]), score[survivors:]])
        final = score
        if scoring.pooling == "always" or (scoring.pooling == "first" and survivors == 0):
            final = F.pad(score, (2, 2), value=-1.0).unfold(0, 5, 1).max(dim=1).values
        if scoring.redundancy != "off":
            span = len(score) if scoring.redundancy == "full" else block_size
            final = scoring.attention_weight * final - (1 - scoring.attention_weight) * redundancy(
                keys[head], span, scoring.similarity_threshold, scoring.redundancy_temperature
            )
        indices = best_entries(final.tolist(), keys[head], keep, scoring, num_pinned[head], has_anchors)
        kept.append(torch.tensor(indices))
        scores.append(score[indices])
    return torch.stack(kept), torch.stack(scores)


def attention_score(
    queries: torch.Tensor, query_indices: list[int], keys: torch.Tensor, scoring: ScoringOptions
) -> torch.Tensor:
    """Mean or maximum over queries `[m, group, d]` of the largest attention within the group; keys are `[n, d]`."""
    visible = torch.arange(len(keys)) <= torch.tensor(query_indices)[:, None, None]
    logits = torch.einsum("mgd,nd->mgn", queries, keys) / keys.shape[-1] ** 0.5
    attention = torch.where(visible, logits, -torch.inf).softmax(dim=2)
    strongest = attention.max(dim=1).values
    is_mean = scoring.reduce == "mean" or scoring.observe == "all"
    return strongest.mean(dim=0) if is_mean else strongest.max(dim=0).values


def redundancy(keys: torch.Tensor, span: int, tau: float, temperature: float) -> torch.Tensor:
    """How much each of the keys `[n, d]` repeats others among its `span` neighbours, `[n]`, summing to 1.

    Each key spares, of those more similar to it than tau, the most recent.
    """
    means = []
    for part in keys.split(span):
        unit = part / part.norm(dim=1, keepdim=True)
        cosine = unit @ unit.T
        for judge, row in enumerate(cosine):
            row[judge] = 0.0
            similar = [j for j in (row > tau).nonzero()[:, 0].tolist() if j != judge]
            if similar:
                row[similar[-1]] = 0.0
        means.append(cosine.mean(dim=0))
    return (torch.cat(means) / temperature).softmax(dim=0)


def best_entries(
    final: list[float], keys: torch.Tensor, keep: int, scoring: ScoringOptions, num_pinned: int, has_anchors: bool
) -> list[int]:
    """Indices of the `keep` entries that stay, ascending; keys are `[n, d]`."""
    room = max(keep - num_pinned, keep // 4)
    recent = max(scoring.window if scoring.recent is None else scoring.recent, round(scoring.recent_share * room))
    always = {index for index in range(len(final)) if index < scoring.sinks or index >= len(final) - recent}
    rest = [index for index in range(num_pinned, len(final)) if index not in always]
    left = max(keep - (len(final) - len(rest)), 0)
    num_anchors = min(round(scoring.anchor_share * room), left) if has_anchors else 0
    anchors = set(best_anchors(keys, rest)[:num_anchors])

    def rank(index: int) -> tuple[bool, bool, bool, float, int]:
        return index in always, index < num_pinned, index in anchors, final[index], index

    return sorted(sorted(range(len(final)), key=rank)[len(final) - keep :])


def best_anchors(keys: torch.Tensor, rest: list[int]) -> list[int]:
    """The entries `rest`, those first whose content is long and unlike that of all later entries."""
    if not rest:
        return []
    quarter = keys.shape[1] // 4
    content = torch.cat([keys[:, quarter : 2 * quarter], keys[:, 3 * quarter :]], dim=1)
    length = content.norm(dim=1)
    cosine = content @ content.T / length / length[:, None]
    likeness = torch.tensor([max(cosine[index, index + 1 :].tolist(), default=-1.0) for index in rest])
    lengths = length[rest]
    score = (lengths - lengths.mean()) / lengths.std(correction=0).clamp(min=1e-6)
    score -= (likeness - likeness.mean()) / likeness.std(correction=0).clamp(min=1e-6)
    steps = [math.floor(value * 256 + 0.5) for value in score.tolist()]
    return [rest[place] for place in sorted(range(len(rest)), key=lambda i: (steps[i], i), reverse=True)]


@torch.inference_mode()
def dense_generate(
    model: Any,
    prompt_ids: list[int],
    max_new_tokens: int,
    scoring: ScoringOptions | None = None,
    block_size: int = 16,
    kv_budget: int = 0,
    eos_ids: tuple[int, ...] = (),
    chunk: int = 1 << 30,
    delays: Sequence[int] = (),
    lengths: Sequence[int] | None = None,
) -> OracleResult:
    """Decode greedily under eviction.

    A request is compressed when prefill is over, its entries fill whole blocks, and these are at least
    `ceil(kv_budget / block_size)`; not once its last token is known. Before, a prompt is compressed when its entries
    fill the budget and `chunk` more, and it is not over.

    Args:
        model: a causal language model of transformers (Llama, Qwen2 or Qwen3) in float32.
        prompt_ids: the prompt, not empty.
        max_new_tokens: at least 1.
        scoring: how survivors are chosen; `None` is the default.
        block_size: entries per block.
        kv_budget: in tokens; 0 never compresses.
        eos_ids: end the answer, and are part of it.
        chunk: entries beyond the budget, in whole blocks, that a prompt fills before it is compressed.
        delays: for each compression, tokens that are computed before it takes effect.
        lengths: entries at which it is compressed each time, instead of the rule above.
    """
    max_blocks = -(-kv_budget // block_size)
    evictor = Evictor(
        scoring or ScoringOptions(),
        block_size,
        max_blocks,
        len(prompt_ids),
        chunk,
        list(delays),
        None if lengths is None else list(lengths),
    )
    layers = [_empty_layer(model.config, len(prompt_ids) + max_new_tokens) for _ in model.model.layers]
    result = OracleResult(tokens=[], kept_positions=[])
    inputs, position, eviction = prompt_ids, 0, None
    while True:
        if eviction is None and evictor.room(layers[0].length, position) == 0:
            eviction = evictor.choose(layers, position)
        if eviction is not None and eviction.delay == 0:
            result.kept_positions.append(evictor.evict(layers, eviction))
            eviction = None
            continue
        room = evictor.room(layers[0].length, position) if eviction is None else None
        now, inputs = inputs[:room], inputs[len(inputs[:room]) :]
        logits = _forward(model, layers, now, position)
        position += len(now)
        if eviction is not None:
            eviction.delay -= len(now)
            if eviction.delay == 0:
                result.kept_positions.append(evictor.evict(layers, eviction))
                eviction = None
        if inputs:
            continue
        inputs = [int(logits.argmax())]
        result.tokens += inputs
        if len(result.tokens) == max_new_tokens or inputs[0] in eos_ids:
            return result


def _empty_layer(config: Any, capacity: int) -> DenseLayer:
    heads = config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return DenseLayer(
        keys=torch.empty(heads, capacity, head_dim),
        values=torch.empty(heads, capacity, head_dim),
        positions=torch.empty(heads, capacity, dtype=torch.int64),
        scores=torch.empty(heads, 0),
    )


def _forward(model: Any, layers: list[DenseLayer], token_ids: list[int], position: int) -> torch.Tensor:
    """Append the tokens, the first of them at `position`, and return the logits of the last one, `[vocabulary]`."""
    hidden = model.model.embed_tokens(torch.tensor(token_ids))
    positions = torch.arange(position, position + len(token_ids))
    cosine, sine = (table[0] for table in model.model.rotary_emb(hidden[None], positions[None]))
    for block, layer in zip(model.model.layers, layers, strict=True):
        normed = block.input_layernorm(hidden)
        query, key, value = _project(block.self_attn, normed, layer.keys.shape[2])
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        hidden = hidden + block.self_attn.o_proj(_attend(layer, query, key, value, positions))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden[-1]))


def _project(attention: Any, hidden: torch.Tensor, head_dim: int) -> list[torch.Tensor]:
    """Queries, keys and values, each `[t, heads, d]`, normalised per head where the model does so."""
    projected = []
    for name in "qkv":
        heads = getattr(attention, f"{name}_proj")(hidden).unflatten(-1, (-1, head_dim))
        norm = getattr(attention, f"{name}_norm", None)
        projected.append(heads if norm is None else norm(heads))
    return projected


def _rotate(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """RoPE on `[t, heads, d]` with tables `[t, d]`, halves of d paired."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine[:, None] + torch.cat([-second, first], dim=-1) * sine[:, None]


def _attend(
    layer: DenseLayer, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Append the entries and attend to all of them, causally among the new ones: `[t, Hq * d]`."""
    start, end = layer.length, layer.length + len(query)
    layer.keys[:, start:end] = key.transpose(0, 1)
    layer.values[:, start:end] = value.transpose(0, 1)
    layer.positions[:, start:end] = positions
    layer.queries.append(query)
    layer.length = end
    visible = torch.arange(end) <= torch.arange(start, end)[:, None]
    output = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        layer.keys[None, :, :end],
        layer.values[None, :, :end],
        attn_mask=visible,
        enable_gqa=True,
    )[0]
    return output.transpose(0, 1).flatten(1)
