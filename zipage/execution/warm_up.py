"""Steps that run before the engine is ready, so that nothing is compiled or initialised when a request waits for it."""

from zipage.config import EngineConfig
from zipage.engine_messages import Admission, RecordingUpdate, RowWork, Step
from zipage.execution.device_executor import DeviceExecutor
from zipage.kernels.small_product import MOST_TOKENS
from zipage.sampling_params import SamplingParams

_SHORT_PROMPT = 3


def warm_up(executor: DeviceExecutor, config: EngineConfig, max_model_len: int) -> None:
    """Compute prompts and first tokens of every kind on a pool that nobody uses yet, and forget them.

    The entries that this leaves in the pool are never read: blocks are written before a request's length covers them.
    """
    geometry = executor.pool.geometry
    longest = min(config.max_num_batched_tokens, max_model_len - 1, geometry.num_blocks * geometry.block_size)
    blocks = list(range(-(-longest // geometry.block_size)))
    rows = range(min(2, config.max_num_seqs))
    # One long prompt, one of as many tokens as a product of few rows may have, several short ones, and prompts of one
    # token, which decode like the rows of a graph.
    few, short = min(MOST_TOKENS, longest), min(_SHORT_PROMPT, longest)
    for lengths in ([longest], [few], [short] * len(rows), [1] * len(rows)):
        for params in _kinds_of_sampling():
            executor.execute(_step(lengths, blocks, params, records=geometry.window > 0))
            executor.execute(Step(0, list(range(len(lengths))), [], [], [], []))


def _kinds_of_sampling() -> list[SamplingParams]:
    """Options of the greedy kernel, of the sampling kernels, and of sampling on the host."""
    neutral = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=0)
    return [
        neutral,
        SamplingParams(temperature=1.0, top_k=5, top_p=0.9, min_p=0.0, repetition_penalty=1.0, seed=0),
        SamplingParams(temperature=1.0, top_k=5, top_p=0.9, min_p=0.0, repetition_penalty=1.1, seed=0, logprobs=1),
    ]


def _step(lengths: list[int], blocks: list[int], params: SamplingParams, records: bool) -> Step:
    """Admits a row for each length, and computes its whole prompt; all rows share the blocks."""
    admissions = [
        Admission(row, [0] * length, length, params, (), blocks, position=0, resident_length=0)
        for row, length in enumerate(lengths)
    ]
    recordings = [RecordingUpdate(row, 0, 0, 0) for row in range(len(lengths))] if records else []
    return Step(0, [], admissions, [], recordings, [RowWork(row, length, []) for row, length in enumerate(lengths)])
