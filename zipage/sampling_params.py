"""What a request may ask of sampling, stopping and scheduling, and the ranges that are accepted."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from zipage.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_PRIORITY = 100


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Sampling, stopping and scheduling options of one request.

    `None` for `temperature`, `top_k`, `top_p`, `min_p` or `repetition_penalty` means the value of the model's
    generation_config.json, or the neutral value where that file is silent (temperature 1, everything else off).

    Attributes:
        n: completions per prompt, 1 to 128.
        temperature: 0 is greedy; at least 0.
        top_k: sample among the k most likely tokens; 0 is off.
        top_p: smallest set of tokens whose probability reaches p; in (0, 1].
        min_p: drop tokens less likely than min_p times the likeliest; in [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or output; > 0.
        presence_penalty: subtracted once from the logit of every token in the output; in [-2, 2].
        frequency_penalty: subtracted per occurrence in the output; in [-2, 2].
        seed: fixes the random numbers of this request whatever else is in the batch; completion `i` of `n` uses
            `seed + i`.
        stop: strings that end the completion; up to 16, none empty.
        stop_token_ids: token ids that end the completion.
        include_stop: leave the stop string or stop token in the returned text.
        max_tokens: at most this many output tokens; `None` is as many as the model allows.
        min_tokens: no stop string, stop token or end-of-sequence before this many output tokens.
        ignore_eos: go on after the model's end-of-sequence token.
        logprobs: return the log-probability of each output token and of this many likeliest tokens, 0 to 20.
        logit_bias: token id to a number in [-100, 100] that is added to its logit.
        kv_budget: most KV entries that this request keeps resident, in tokens, rounded up to whole blocks, instead of
            the engine's budget; 0 is never to compress it. An engine without a budget takes 0 only.
        priority: class of the request, -100 to 100; a lower class is served first, and takes blocks and places of
            higher ones. Inside a class, first come is first served.
        deadline: seconds after its arrival at which the request ends with what it has, finish reason `deadline`; > 0.
        skip_special_tokens: leave special tokens out of the returned text.
    """

    n: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: dict[int, float] = {}
    kv_budget: int | None = None
    priority: int = 0
    deadline: float | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidRequestError: a field is outside its range; the message names the field and the range.
        """
        _check_range("n", self.n, 1, MAX_N)
        _check_range("temperature", self.temperature, 0, math.inf)
        _check_range("top_k", self.top_k, 0, math.inf)
        _check_range("top_p", self.top_p, 0, 1, low_open=True)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("repetition_penalty", self.repetition_penalty, 0, math.inf, low_open=True)
        _check_range("presence_penalty", self.presence_penalty, -2, 2)
        _check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_range("seed", self.seed, 0, 2**63 - 1)
        _check_range("max_tokens", self.max_tokens, 1, math.inf)
        _check_range("min_tokens", self.min_tokens, 0, math.inf if self.max_tokens is None else self.max_tokens)
        _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_range("kv_budget", self.kv_budget, 0, math.inf)
        _check_range("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        _check_range("deadline", self.deadline, 0, math.inf, low_open=True)
        for token_id in self.stop_token_ids:
            _check_range("stop_token_ids", token_id, 0, math.inf)
        for token_id, bias in self.logit_bias.items():
            _check_range("logit_bias (token id)", token_id, 0, math.inf)
            _check_range("logit_bias", bias, -100, 100)
        if len(self.stop) > MAX_STOP_STRINGS or any(not text for text in self.stop):
            raise InvalidRequestError(f"stop must be at most {MAX_STOP_STRINGS} non-empty strings", "stop")


def sampling_params_from(fields: Mapping[str, Any]) -> SamplingParams:
    """Build `SamplingParams` from a mapping such as one line of a JSONL file.

    A single string is accepted for `stop`.

    Raises:
        InvalidRequestError: an unknown field, a wrong type, or a value outside its range.
    """
    fields = dict(fields)
    if isinstance(fields.get("stop"), str):
        fields["stop"] = (fields["stop"],)
    try:
        return msgspec.convert(fields, SamplingParams, str_keys=True)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"sampling parameters: {error}") from None


def _check_range(field: str, value: float | None, low: float, high: float, *, low_open: bool = False) -> None:
    if value is None:
        return
    if value < low or value > high or (low_open and value == low) or math.isnan(value) or math.isinf(value):
        left = "(" if low_open else "["
        right = "inf)" if math.isinf(high) else f"{high}]"
        raise InvalidRequestError(f"{field} must be in {left}{low}, {right}, not {value}", field.split(" ")[0])
