"""CPU time of the scheduler, per request and step, with workers that answer at once.

    python -m tools.bench_scheduler --output result.json

Everything that the scheduler process does with a step is counted: planning, the encoding and decoding of messages, and
taking the results. The sockets are not.
"""

import json
import time
from collections import deque
from importlib.metadata import version
from pathlib import Path

import click
import msgspec

from zipage.config import ScoringOptions
from zipage.engine_messages import (
    CompressionDone,
    DecodeWorkerMessage,
    SampledToken,
    Step,
    StepResult,
    TokenOutputs,
    TokenRequest,
)
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler

BLOCK_SIZE = 16
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 400


class InstantWorkers:
    """Knows of every row only how many of its tokens are not computed."""

    def __init__(self) -> None:
        self._uncomputed: dict[int, int] = {}

    def execute(self, step: Step) -> StepResult:
        """The result that a decode worker would send."""
        for admission in step.admissions:
            self._uncomputed[admission.row] = len(admission.token_ids) - admission.position
        rows = []
        for work in step.work:
            self._uncomputed[work.row] -= work.num_tokens
            if not self._uncomputed[work.row]:
                self._uncomputed[work.row] = 1
                rows.append(work.row)
        return StepResult(step.step_id, rows, [SampledToken(7)] * len(rows))


def make_scheduler(num_requests: int, kv_budget: int, pool_share: float) -> Scheduler:
    """A scheduler whose pool holds `pool_share` of what all requests would fill without a budget."""
    budget_blocks = kv_budget // BLOCK_SIZE
    num_blocks = int(pool_share * num_requests * (PROMPT_TOKENS + OUTPUT_TOKENS) / BLOCK_SIZE)
    num_query_slots = min(num_requests, num_blocks // budget_blocks) if budget_blocks else 0
    limits = SchedulerLimits(
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_query_slots=num_query_slots,
        num_query_buffers=2 * num_query_slots,
        max_blocks_per_request=budget_blocks,
        max_num_seqs=num_requests,
        max_num_batched_tokens=4096,
        max_model_len=PROMPT_TOKENS + OUTPUT_TOKENS,
        max_steps_in_flight=2,
        prefix_caching=True,
        scoring=ScoringOptions(),
        max_shadow_blocks=num_blocks // 4,
    )
    scheduler = Scheduler(limits)
    params = SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    prompts = ([10 + uid, *range(1, PROMPT_TOKENS)] for uid in range(num_requests))
    scheduler.add([TokenRequest(uid, prompt, params, (2,)) for uid, prompt in enumerate(prompts)], 0.0)
    return scheduler


def measure(scheduler: Scheduler) -> dict[str, float]:
    """Run until everything has finished; only what the scheduler process does is on the clock."""
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(DecodeWorkerMessage)
    workers, frames, done = InstantWorkers(), deque[bytes](), deque[int]()
    seconds, computed = 0.0, 0
    while not scheduler.is_idle:
        started = time.process_time()
        if frames:
            result = decoder.decode(frames.popleft())
            if outputs := scheduler.finish_step(result, 0.0):
                encoder.encode(TokenOutputs(outputs))
        while done:
            scheduler.finish_job(CompressionDone(done.popleft(), 0), 0.0)
        steps = []
        while (step := scheduler.plan()) is not None:
            steps.append(step)
            encoder.encode(step)
        jobs = scheduler.plan_jobs()
        encoder.encode(jobs)
        seconds += time.process_time() - started
        done.extend(job.uid for job in jobs)
        frames.extend(encoder.encode(workers.execute(step)) for step in steps)
        computed += sum(len(step.work) for step in steps)
    counters = scheduler.counters
    return {
        "microseconds_per_request_and_step": round(1e6 * seconds / computed, 2),
        "steps": counters.steps,
        "mean_batch": round(computed / counters.steps, 1),
        "compressions": counters.compressions,
        "shadow_compressions": counters.shadow_compressions,
        "preemptions": counters.preemptions,
    }


@click.command()
@click.option("--num-requests", default=256, show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here as JSON.")
def main(num_requests: int, output: Path | None) -> None:
    """Print the scheduler's CPU time with and without a budget, in pools that are large and small."""
    cases = {
        "full KV, pool for all": (0, 1.1),
        "full KV, pool for a quarter": (0, 0.25),
        "budget 128, pool for all": (128, 1.1),
        "budget 128, pool for a quarter": (128, 0.25),
    }
    results = {name: measure(make_scheduler(num_requests, *case)) for name, case in cases.items()}
    for name, result in results.items():
        click.echo(f"{name:<32} " + ", ".join(f"{key} {value}" for key, value in result.items()))
    if output is not None:
        facts = {"num_requests": num_requests, "versions": {name: version(name) for name in ("msgspec", "zipage")}}
        output.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
