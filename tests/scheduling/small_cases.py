"""Schedulers small enough to follow by hand, and the answers of workers that do nothing."""

from zipage.config import ScoringOptions
from zipage.engine_messages import Job, SampledToken, Step, StepResult, TokenRequest
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler


def make_scheduler(**overrides) -> Scheduler:
    limits = {
        "num_blocks": 16,
        "block_size": 8,
        "num_query_slots": 0,
        "max_blocks_per_request": 0,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_model_len": 1000,
        "max_steps_in_flight": 1,
        "prefix_caching": False,
        "scoring": ScoringOptions(window=4),
    }
    limits |= overrides
    # As many spare buffers as shadow jobs can want.
    buffers = limits["num_query_slots"] + limits.get("max_shadow_blocks", 0)
    return Scheduler(SchedulerLimits(**{"num_query_buffers": buffers, **limits}))


def request(uid: int, prompt: int, **params) -> TokenRequest:
    return TokenRequest(uid, list(range(10, 10 + prompt)), SamplingParams(**params), (2,))


def jobs_of(scheduler: Scheduler) -> list[Job]:
    """What is sent to the compression worker while no token can be planned."""
    assert scheduler.plan() is None
    return scheduler.plan_jobs()


def answer(step: Step, rows: list[int], token: int = 5) -> StepResult:
    return StepResult(step.step_id, rows, [SampledToken(token)] * len(rows))


def run_step(scheduler: Scheduler) -> Step:
    """Plan a step and let all of its rows sample."""
    step = scheduler.plan()
    assert step is not None
    scheduler.finish_step(answer(step, [work.row for work in step.work]), 0.0)
    return step
