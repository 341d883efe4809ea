"""The engine's plain modules driven in one process, step by step: no sockets, no timing, every compression visible."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from msgspec.structs import replace

from zipage.config import EngineConfig
from zipage.engine_messages import (
    CompressionDone,
    CompressionJob,
    Job,
    SampledToken,
    Step,
    SwapDone,
    TokenOutput,
    TokenRequest,
)
from zipage.eviction.job import run_job
from zipage.execution.executor import Executor
from zipage.execution.host_memory import HostMemory
from zipage.execution.pool import KVPool, allocate_on_device
from zipage.execution.pool_size import choose_geometry, effective_max_model_len
from zipage.messages import RequestMetrics
from zipage.models.config import load_model_config
from zipage.models.decoder import Decoder
from zipage.models.loading import load_decoder
from zipage.sampling_params import SamplingParams
from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.scheduler import Scheduler


def greedy(max_tokens: int | None, ignore_eos: bool = True) -> SamplingParams:
    """Resolved greedy parameters."""
    return SamplingParams(
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.0,
        seed=0,
        ignore_eos=ignore_eos,
        max_tokens=max_tokens,
    )


@dataclass
class Result:
    """One finished completion.

    For each compression `kept` holds [num_layers, num_kv_heads, keep] positions, `lengths` the entries that it found,
    and `delays` how many tokens were computed before it took effect.
    """

    tokens: list[int] = field(default_factory=list)
    sampled: list[SampledToken] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    delays: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    metrics: RequestMetrics | None = None


@dataclass
class InProcessEngine:
    """Scheduler, executor and eviction over one pool; jobs finish right after the step that ordered them.

    `finish_jobs` decides, for the list of open jobs, which of them are done before the next step, so that tests can
    hold jobs back; `before_plan` is called with the scheduler before each step is planned.
    """

    decoder: Decoder
    config: EngineConfig
    pool: KVPool
    scheduler: Scheduler
    executor: Executor
    host_memory: HostMemory
    finish_jobs: Callable[[list[Job]], list[Job]] = list
    before_plan: Callable[[Scheduler], None] = lambda scheduler: None
    results: dict[int, Result] = field(default_factory=dict)
    positions: dict[int, torch.Tensor] = field(default_factory=dict)
    interval_starts: dict[int, int] = field(default_factory=dict)
    step_sizes: list[int] = field(default_factory=list)
    most_waiting: int = 0
    # What the workers have and have not answered.
    steps: deque[Step] = field(default_factory=deque)
    jobs: list[Job] = field(default_factory=list)

    @classmethod
    def create(
        cls, model_dir: Path, config: EngineConfig, pool_bytes: int = 64 << 20, swap_bytes: int = 0
    ) -> "InProcessEngine":
        model = load_model_config(model_dir)
        decoder = load_decoder(model_dir, model, torch.float32, torch.device("cpu"))
        return cls.around(decoder, config, pool_bytes, swap_bytes)

    @classmethod
    def around(
        cls, decoder: Decoder, config: EngineConfig, pool_bytes: int = 64 << 20, swap_bytes: int = 0
    ) -> "InProcessEngine":
        geometry = choose_geometry(config, decoder.config, "float32", pool_bytes, swap_bytes)
        max_model_len = effective_max_model_len(config, decoder.config, geometry)
        pool = allocate_on_device(geometry, torch.device("cpu"))
        scheduler = Scheduler(SchedulerLimits.from_config(config, geometry, max_model_len))
        executor = Executor(decoder, pool, config, max_model_len)
        return cls(decoder, config, pool, scheduler, executor, HostMemory(pool))

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams | Sequence[SamplingParams],
        max_steps: int | None = None,
    ) -> list[Result]:
        """Submit all prompts at once and run until the engine is idle; what is left after `max_steps` is aborted."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        first = len(self.results)
        eos = self.decoder.config.eos_token_ids
        requests = [TokenRequest(first + i, prompt, each[i], eos) for i, prompt in enumerate(prompts)]
        for request in requests:
            self.results[request.uid] = Result()
        refused = self.scheduler.add(requests, 0.0)
        assert not refused, refused
        self.run(max_steps)
        return [self.results[request.uid] for request in requests]

    def run(self, max_steps: int | None = None) -> None:
        """Step until nothing is left, checking the scheduler's integrity on the way."""
        while not self.scheduler.is_idle:
            if len(self.step_sizes) == max_steps:
                self.scheduler.abort(self.results, 0.0)
            self.before_plan(self.scheduler)
            if self.scheduler.is_idle:
                break
            while (step := self.scheduler.plan()) is not None:
                self.steps.append(step)
                self.most_waiting = max(self.most_waiting, self.scheduler.num_waiting)
            self.jobs += self.scheduler.plan_jobs()
            assert self.steps or self.jobs, "the scheduler is stuck"
            if self.steps:
                self.step_sizes.append(sum(work.num_tokens for work in self.steps[0].work))
                step = self.steps.popleft()
                self._take(self.scheduler.finish_step(self.executor.execute(step), 0.0))
            # Jobs run before the steps that were planned ahead of them, which must not touch the same blocks.
            for job in self.finish_jobs(self.jobs):
                self._finish_job(job)
                self.jobs.remove(job)
            assert not self.scheduler.integrity_errors()

    def restart_workers(self, num_blocks: int) -> None:
        """Lose both workers with the pool and all that was sent to them; the next pool has `num_blocks`."""
        max_model_len = self.scheduler.limits.max_model_len
        geometry = replace(self.pool.geometry, num_blocks=num_blocks)
        self.pool = allocate_on_device(geometry, torch.device("cpu"))
        self.executor = Executor(self.decoder, self.pool, self.config, max_model_len)
        self.host_memory = HostMemory(self.pool)
        self.steps.clear()
        self.jobs.clear()
        limits = SchedulerLimits.from_config(self.config, geometry, max_model_len)
        self._take(self.scheduler.start_over(limits, 0.0))

    def restart_compression_worker(self) -> None:
        """Lose the compression worker with all jobs, none of which it has begun."""
        self.jobs.clear()
        self._take(self.scheduler.resend_jobs([], 0.0))

    def _take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            result = self.results[output.uid]
            if output.token is not None:
                result.tokens.append(output.token.token_id)
                result.sampled.append(output.token)
            result.finish_reason, result.metrics = output.finish_reason, output.metrics

    def _finish_job(self, job: Job) -> None:
        if not isinstance(job, CompressionJob):
            self.host_memory.run(job)
            self._take(self.scheduler.finish_job(SwapDone(job.uid), 0.0))
            return
        result = run_job(job, self.pool, self.config.scoring)
        self._record_positions(job, result.kept)
        self._take(self.scheduler.finish_job(CompressionDone(job.uid, result.num_pinned), 0.0))

    def _record_positions(self, job: CompressionJob, kept: torch.Tensor) -> None:
        """Translate kept resident indices into positions, through the positions that earlier compressions left."""
        layers, heads, _ = kept.shape
        start, survivors = self.interval_starts.get(job.uid, 0), self.positions.get(job.uid)
        if job.num_survivors == 0 or survivors is None:
            start, survivors = 0, torch.zeros(layers, heads, 0, dtype=torch.int64)
        end = start + job.num_entries - job.num_survivors
        before = torch.cat([survivors, torch.arange(start, end).expand(layers, heads, -1)], dim=2)
        self.positions[job.uid], self.interval_starts[job.uid] = before.gather(2, kept), end
        request = self.scheduler.lives.unfinished.get(job.uid)
        if request is not None:
            self.results[job.uid].kept.append(self.positions[job.uid])
            self.results[job.uid].lengths.append(job.num_entries)
            self.results[job.uid].delays.append(request.position - end)
