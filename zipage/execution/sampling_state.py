"""What sampling has to know about one request: its resolved options and the tokens seen so far."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from zipage.execution.random_numbers import uniform
from zipage.sampling_params import SamplingParams

_Number = TypeVar("_Number", int, float)
_FLOAT32 = torch.finfo(torch.float32)


class SeenTokens:
    """The distinct tokens that penalties apply to and how often each occurs in the output, kept on the device."""

    def __init__(self, prompt_ids: Sequence[int], output_ids: Sequence[int], device: torch.device | str) -> None:
        """Count `output_ids`; `prompt_ids` are seen too, with a count of 0 each."""
        counts = dict.fromkeys(prompt_ids, 0)
        for token_id in output_ids:
            counts[token_id] = counts.get(token_id, 0) + 1
        self._slots = {token_id: slot for slot, token_id in enumerate(counts)}
        capacity = 2 * len(counts) + 256
        self._ids = torch.zeros(capacity, dtype=torch.int64, device=device)
        self._counts = torch.zeros(capacity, dtype=torch.float32, device=device)
        self._ids[: len(counts)] = torch.tensor(list(counts), dtype=torch.int64)
        self._counts[: len(counts)] = torch.tensor(list(counts.values()), dtype=torch.float32)

    @property
    def ids(self) -> Tensor:
        """[S] int64, no id twice."""
        return self._ids[: len(self._slots)]

    @property
    def counts(self) -> Tensor:
        """[S] float32, occurrences of `ids` in the output."""
        return self._counts[: len(self._slots)]

    @torch.inference_mode()
    def append(self, token_id: int) -> None:
        """Count one more output token."""
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[slot] = token_id
        self._counts[slot] += 1


class SamplingState:
    """Sampling options and history of one row.

    Attributes:
        vocab_size: width of the logits.
        greedy: take the likeliest token; `temperature` and the filters are not used.
        temperature: divides the logits; > 0 and a normal float32.
        top_k: 1 to the vocabulary size, which is off.
        top_p: in (0, 1], 1 is off.
        min_p: in [0, 1], 0 is off.
        repetition_penalty: > 0 and a normal float32, 1 is off.
        presence_penalty, frequency_penalty: as in `SamplingParams`, 0 is off.
        num_logprobs: how many top logprobs to return; `None` is no logprobs at all.
        seed: of the request's stream of random numbers.
        num_output_tokens: tokens sampled so far, those before a preemption included.
        bias: token ids [B] int64 and what is added to their logits, [B] float32; `None` without a logit bias.
        seen_tokens: `None` where no penalty needs them.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
        eos_token_ids: Sequence[int],
        vocab_size: int,
        device: torch.device | str,
    ) -> None:
        """Prepare the state of a request that is admitted, or resumed after it had sampled `output_ids`.

        Args:
            params: with temperature, top_k, top_p, min_p, repetition_penalty and seed resolved to numbers.
            prompt_ids: the prompt's tokens.
            output_ids: the tokens sampled so far.
            eos_token_ids: the model's end-of-sequence tokens.
            vocab_size: width of the logits.
            device: where the logits are.

        Raises:
            ValueError: a field of `params` is unresolved.
        """
        temperature = _resolved("temperature", params.temperature)
        top_k = _resolved("top_k", params.top_k)
        self.vocab_size = vocab_size
        self.greedy = temperature == 0
        self.temperature = _normal_float32(temperature)
        self.top_k = top_k if 0 < top_k < vocab_size else vocab_size
        self.top_p = _resolved("top_p", params.top_p)
        self.min_p = _resolved("min_p", params.min_p)
        self.repetition_penalty = _normal_float32(_resolved("repetition_penalty", params.repetition_penalty))
        self.presence_penalty = params.presence_penalty
        self.frequency_penalty = params.frequency_penalty
        self.num_logprobs = params.logprobs
        self.num_output_tokens = len(output_ids)
        self.seed = _resolved("seed", params.seed)

        self.bias: tuple[Tensor, Tensor] | None = None
        if params.logit_bias:
            ids, values = list(params.logit_bias), list(params.logit_bias.values())
            self.bias = torch.tensor(ids, device=device), torch.tensor(values, dtype=torch.float32, device=device)

        self.seen_tokens: SeenTokens | None = None
        repeats = self.repetition_penalty != 1
        if repeats or self.presence_penalty or self.frequency_penalty:
            # Presence and frequency count the output only, so without repetition the prompt need not be carried.
            self.seen_tokens = SeenTokens(prompt_ids if repeats else (), output_ids, device)

        self._min_tokens = params.min_tokens
        stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
        stop_ids = {token_id for token_id in stop_ids if token_id < vocab_size}
        self._stop_ids: Tensor | None = None
        if stop_ids and self._min_tokens > self.num_output_tokens:
            self._stop_ids = torch.tensor(sorted(stop_ids), dtype=torch.int64, device=device)

    def append(self, token_id: int) -> None:
        """Record a sampled token."""
        self.num_output_tokens += 1
        if self.seen_tokens is not None:
            self.seen_tokens.append(token_id)

    @property
    def forbidden_ids(self) -> Tensor | None:
        """[F] int64, tokens that would end the completion before `min_tokens`; `None` where there are none."""
        return self._stop_ids if self.num_output_tokens < self._min_tokens else None

    @property
    def changes_logits(self) -> bool:
        """Whether a logit bias, a penalty or `min_tokens` applies to the next token."""
        return self.bias is not None or self.seen_tokens is not None or self.forbidden_ids is not None

    @property
    def needs_ranking(self) -> bool:
        """Whether the next token is drawn under top_k or top_p, which look at the tokens in order of likelihood."""
        return not self.greedy and (self.top_p < 1 or self.top_k < self.vocab_size)

    def next_uniform(self) -> float:
        """The random number of the next output token, in [0, 1)."""
        return uniform(self.seed, self.num_output_tokens)


def _resolved(field: str, value: _Number | None) -> _Number:
    if value is None:
        raise ValueError(f"{field} must be resolved before sampling")
    return value


def _normal_float32(value: float) -> float:
    """Move a number that is at least 0 to the nearest normal number of float32: not 0, denormal or infinite."""
    return min(max(value, _FLOAT32.tiny), _FLOAT32.max)
