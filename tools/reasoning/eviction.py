"""Eviction simulated on right answers: what a policy would evict, and which tokens the model would then get wrong.

Tokens are fed block by block as they should be, whatever the model says, so one pass over an answer takes seconds
where decoding takes minutes. Entries are evicted after every block, as a worker does that is never late. An answer
counts as right when every one of its tokens is the most likely one.
"""

from dataclasses import dataclass, field, replace

import torch

from tools.reasoning.anchors import anchor_scores
from tools.reasoning.encoding import Document
from tools.reasoning.model import Layer, Reasoner, SelfAttention, rotate

Head = tuple[int, int]
"""Layer and KV head."""

ALWAYS = 1e3
PINNED = 1e1
ANCHOR = 3e0
NEWER = 1e-9


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy that observes every query.

    Attributes:
        temperature: divides the logits before the softmax whose probabilities are observed; above 1, entries that are
            like the best match keep a share.
        reduce: `mean` or `max` of the observed probabilities over the queries of a block.
        decay: of the scores of earlier blocks, per block.
        sinks: the first entries, always kept.
        recent_share: share of the room for the most recent entries.
        anchor_share: share of the room for anchors, ahead of all others but sinks, recent entries and a pinned prompt.
        anchor_layers: share of the layers, from the first one on, that keep anchors.
        pin_share: share of the kept entries up to which the prompt's first ones are kept ahead of everything but sinks
            and recent entries.
        head_shares: KV heads that keep this share of all entries; the others share what is left of the same total.
    """

    temperature: float = 1.0
    reduce: str = "max"
    decay: float = 0.9
    sinks: int = 4
    recent_share: float = 0.2
    anchor_share: float = 0.45
    anchor_layers: float = 0.75
    pin_share: float = 0.25
    head_shares: dict[Head, float] = field(default_factory=dict)

    def kept(self, keep: int, length: int, layers: int, heads: int) -> torch.Tensor:
        """Entries that each head keeps, [layers, heads] int64, at the total of `keep` for each.

        Args:
            keep: entries of a layer and KV head, if all had the same.
            length: of the whole sequence, which `head_shares` are shares of.
            layers: of the model.
            heads: KV heads of a layer.

        Raises:
            ValueError: the heads with shares leave nothing for the others.
        """
        special = {head: round(share * length) for head, share in self.head_shares.items()}
        others = layers * heads - len(special)
        rest = (keep * layers * heads - sum(special.values())) // max(1, others)
        if others and rest < 1:
            raise ValueError(f"{len(special)} heads with shares keep {sum(special.values())} entries, others none")
        kept = torch.full((layers, heads), rest)
        for (layer, head), entries in special.items():
            kept[layer, head] = entries
        return kept

    def in_layer(self, number: int, layers: int) -> "Candidate":
        """The policy of layer `number` of `layers`."""
        return self if number < round(self.anchor_layers * layers) else replace(self, anchor_share=0.0)

    def pinned(self, kept: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """How many of the prompts' first entries are pinned, [B, H] int64; the arguments are those of `room`."""
        return torch.minimum(prompts[:, None], (self.pin_share * kept.double()).long())

    def room(self, kept: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Of `kept` entries, [H], those that a pinned prompt leaves, or a quarter if that is more: [B, H] int64.

        Args:
            kept: entries that each head keeps.
            prompts: [B], the prompts' lengths.
        """
        return torch.maximum(kept - self.pinned(kept, prompts), kept // 4)


@dataclass(slots=True)
class Resident:
    """One layer's resident entries; heads that keep fewer than others have holes (`valid` is false).

    Attributes:
        keys, values: [B, Hkv, n, d].
        positions: [B, Hkv, n] int64.
        scores: [B, Hkv, n].
        valid: [B, Hkv, n] bool.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    scores: torch.Tensor
    valid: torch.Tensor

    @classmethod
    def none(cls, rows: int, heads: int, head_dim: int) -> "Resident":
        """No entries."""
        entries = torch.zeros(rows, heads, 0)
        vectors = torch.zeros(rows, heads, 0, head_dim)
        return cls(vectors, vectors, entries.long(), entries, entries.bool())

    def append(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> None:
        """Add entries [B, Hkv, m, d] at positions [m], with scores of 0."""
        rows, heads, count, _ = keys.shape
        self.keys, self.values = torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)
        self.positions = torch.cat((self.positions, positions.expand(rows, heads, count)), 2)
        self.scores = torch.cat((self.scores, torch.zeros(rows, heads, count)), 2)
        self.valid = torch.cat((self.valid, torch.ones(rows, heads, count, dtype=torch.bool)), 2)

    def keep(self, index: torch.Tensor, valid: torch.Tensor) -> None:
        """Keep the entries `index`, [B, Hkv, k] int64, of which only `valid` ones count."""
        vectors = index[..., None].expand(-1, -1, -1, self.keys.shape[-1])
        self.keys, self.values = self.keys.gather(2, vectors), self.values.gather(2, vectors)
        self.positions, self.scores = self.positions.gather(2, index), self.scores.gather(2, index)
        self.valid = valid


class EvictionSimulator:
    """Runs documents through a model whose KV entries are evicted by a candidate."""

    def __init__(self, model: Reasoner, block_size: int) -> None:
        self._model = model
        self._block_size = block_size

    @torch.no_grad()
    def wrong_tokens(self, documents: list[Document], candidate: Candidate, keep: int) -> list[int]:
        """How many of each answer's tokens the model gets wrong; `keep` entries of a layer and head, on average."""
        block, shape = self._block_size, self._model.shape
        length = max(len(document.token_ids) for document in documents)
        token_ids = torch.zeros(len(documents), -(-length // block) * block, dtype=torch.long)
        for row, document in enumerate(documents):
            token_ids[row, : len(document.token_ids)] = torch.from_numpy(document.token_ids)
        prompts = torch.tensor([document.prompt_length for document in documents])
        kept = candidate.kept(keep, length, shape.layers, shape.kv_heads)
        layers = [Resident.none(len(documents), shape.kv_heads, shape.head_dim) for _ in range(shape.layers)]
        predicted = [
            self._block(token_ids[:, start : start + block], start, layers, candidate, kept, prompts)
            for start in range(0, token_ids.shape[1], block)
        ]
        return _count_wrong(torch.cat(predicted, 1), token_ids, documents)

    def _block(
        self,
        token_ids: torch.Tensor,
        start: int,
        layers: list[Resident],
        candidate: Candidate,
        kept: torch.Tensor,
        prompts: torch.Tensor,
    ) -> torch.Tensor:
        body = self._model.model
        positions = torch.arange(start, start + token_ids.shape[1])
        angles = positions[None, None, :, None].float() * self._model.frequencies
        residual = body.embed_tokens(token_ids)
        for number, (layer, resident) in enumerate(zip(body.layers, layers, strict=True)):
            assert isinstance(layer, Layer)
            inputs = layer.input_layernorm(residual)
            output = _attend(layer.self_attn, inputs, (angles.cos(), angles.sin()), positions, resident, candidate)
            residual = residual + output
            residual = residual + layer.mlp(layer.post_attention_layernorm(residual))
            policy = candidate.in_layer(number, len(layers))
            evict(resident, policy, kept[number], prompts, int(positions[-1]) + 1)
        logits: torch.Tensor = body.norm(residual) @ body.embed_tokens.weight.T
        return logits.argmax(-1)


def _attend(
    attention: SelfAttention,
    inputs: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    resident: Resident,
    candidate: Candidate,
) -> torch.Tensor:
    """Attention over resident entries and the block itself, which becomes resident; scores are brought up to date."""
    query, key, value = (
        projection(inputs).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = rotate(attention.q_norm(query), rotation), rotate(attention.k_norm(key), rotation)
    resident.append(key, value, positions)
    groups = query.unflatten(1, (key.shape[1], -1))
    logits = torch.einsum("bhgqd,bhnd->bhgqn", groups, resident.keys) * attention.head_dim**-0.5
    visible = resident.valid[:, :, None] & (resident.positions[:, :, None] <= positions[:, None])
    logits = logits.masked_fill(~visible[:, :, None], -torch.inf)
    _observe(resident, logits, candidate)
    output = torch.einsum("bhgqn,bhnd->bhgqd", logits.softmax(-1), resident.values).flatten(1, 2)
    projected: torch.Tensor = attention.o_proj(output.transpose(1, 2).flatten(2))
    return projected


def _observe(resident: Resident, logits: torch.Tensor, candidate: Candidate) -> None:
    """`S = max(decay * S, observed)` from logits [B, Hkv, G, m, n], with the largest probability within a group."""
    largest = (logits / candidate.temperature).softmax(-1).amax(2)
    observed = largest.amax(2) if candidate.reduce == "max" else largest.mean(2)
    resident.scores = torch.maximum(candidate.decay * resident.scores, observed)


def evict(resident: Resident, candidate: Candidate, kept: torch.Tensor, prompts: torch.Tensor, length: int) -> None:
    """Keep `kept`, [Hkv], of each head's entries: those that are always kept, then the best scores, then newer ones.

    Args:
        resident: what is resident, changed in place.
        candidate: says which entries are kept ahead of the best scores.
        kept: entries that each head keeps.
        prompts: [B], the prompts' lengths.
        length: tokens so far.
    """
    count = resident.positions.shape[2]
    if count <= int(kept.min()):
        return
    rank = _rank(resident, candidate, kept, prompts, length).masked_fill(~resident.valid, -torch.inf)
    best = rank.topk(min(count, int(kept.max())), -1)
    order = torch.arange(best.indices.shape[-1])
    good = (order < kept[None, :, None]) & best.values.isfinite()
    index = torch.where(good, best.indices, count).sort(-1).values
    resident.keep(index.clamp(max=count - 1), index < count)


def _rank(
    resident: Resident, candidate: Candidate, kept: torch.Tensor, prompts: torch.Tensor, length: int
) -> torch.Tensor:
    positions, room = resident.positions, candidate.room(kept, prompts)[:, :, None]
    always = (positions < candidate.sinks) | (positions >= length - _part(candidate.recent_share, room))
    pinned = positions < candidate.pinned(kept, prompts)[:, :, None]
    rank = resident.scores + positions * NEWER + pinned * PINNED + always * ALWAYS
    if not candidate.anchor_share:
        return rank
    rest = resident.valid & ~always & ~pinned
    left = kept[:, None] - (resident.valid & ~rest).sum(-1, keepdim=True)
    anchors = torch.minimum(_part(candidate.anchor_share, room), left)
    scores = anchor_scores(resident.keys, resident.valid, rest)
    return rank + (rest & (scores.argsort(-1, descending=True).argsort(-1) < anchors)) * ANCHOR


def _part(share: float, room: torch.Tensor) -> torch.Tensor:
    return (share * room.double()).round().long()


def _count_wrong(predicted: torch.Tensor, token_ids: torch.Tensor, documents: list[Document]) -> list[int]:
    wrong = []
    for row, document in enumerate(documents):
        first, end = document.prompt_length, len(document.token_ids)
        wrong.append(int((predicted[row, first - 1 : end - 1] != token_ids[row, first:end]).sum()))
    return wrong
