"""What a request left open: sampling defaults, seeds and end-of-sequence tokens."""

import msgspec

from zipage.models.config import GenerationDefaults, ModelConfig
from zipage.sampling_params import SamplingParams

SEED_RANGE = 2**63
WORD_MASK = 2**64 - 1


def resolve_params(
    params: SamplingParams, defaults: GenerationDefaults, engine_seed: int, uid: int, index: int
) -> SamplingParams:
    """The sampling parameters of one completion, with nothing left for the model to decide but `max_tokens`.

    A field that is `None` takes the value of generation_config.json, or the neutral value where that is silent. Where
    the file says `do_sample: false` and the request gives no temperature, decoding is greedy.

    Args:
        params: of the request.
        defaults: of the model.
        engine_seed: the engine's seed, 0 to 2**63 - 1.
        uid: the completion's number in the engine.
        index: which of the request's `n` completions it is; its seed is `params.seed + index`, modulo 2**63, or
            `derive_seed(engine_seed, uid)` where the request brings none.
    """
    temperature = _first(params.temperature, 0.0 if defaults.do_sample is False else defaults.temperature, 1.0)
    seed = derive_seed(engine_seed, uid) if params.seed is None else (params.seed + index) % SEED_RANGE
    return msgspec.structs.replace(
        params,
        n=1,
        temperature=temperature,
        top_k=int(_first(params.top_k, defaults.top_k, 0)),
        top_p=_first(params.top_p, defaults.top_p, 1.0),
        min_p=_first(params.min_p, defaults.min_p, 0.0),
        repetition_penalty=_first(params.repetition_penalty, defaults.repetition_penalty, 1.0),
        seed=seed,
    )


def derive_seed(engine_seed: int, uid: int) -> int:
    """A seed for completion `uid`, 0 to 2**63 - 1: the upper 63 bits of output `uid` of a SplitMix64 generator.

    The generator's state starts at `engine_seed` after one mixing, so that neighbouring engine seeds do not share a
    sequence (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014; the constants are those of
    Stafford's variant 13, as in Java's SplittableRandom).
    """
    state = _mix(engine_seed) + (uid + 1) * 0x9E3779B97F4A7C15
    return _mix(state & WORD_MASK) >> 1


def end_of_sequence_ids(model: ModelConfig, defaults: GenerationDefaults, tokenizer_eos: int | None) -> tuple[int, ...]:
    """Every token that ends a completion, ascending.

    These are generation_config.json's, or config.json's where that names none, and the tokenizer's own: chat models
    name the end of a turn in one file and the end of a document in another. Ids that the model has no logit for are
    left out.
    """
    configured = model.eos_token_ids if defaults.eos_token_ids is None else defaults.eos_token_ids
    token_ids = {*configured} if tokenizer_eos is None else {*configured, tokenizer_eos}
    return tuple(sorted(token_id for token_id in token_ids if token_id < model.vocab_size))


def _mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD_MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD_MASK
    return word ^ (word >> 31)


def _first(given: float | None, default: float | None, neutral: float) -> float:
    if given is not None:
        return given
    return neutral if default is None else default
