"""One engine, asked everything at once."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tools.evaluation.questions import Questions, accepted
from zipage import LLM, SamplingParams
from zipage.client_requests import Conversation, is_conversation
from zipage.messages import Status
from zipage.results import RequestOutput

IDLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class EngineRun:
    """Results by the name of their questions, in the order of the prompts, and what the engine has measured."""

    results: dict[str, Sequence[RequestOutput]]
    facts: dict[str, Any]


def ask(
    model: str | None, options: Mapping[str, Any], suite: Sequence[Questions], budgets: Mapping[str, int]
) -> EngineRun:
    """Start an engine, ask it all questions in one call, and end it.

    Args:
        model: a directory or a hub id; `None` is the bundled model.
        options: fields of `EngineConfig`; its `kv_budget` should be the largest of `budgets`, because query slots
            are made, and kernels compiled, for that.
        suite: all with conversations, or all with text.
        budgets: the requests' own `kv_budget` by the name of the questions; empty for full KV.

    Raises:
        ConfigError, EngineError: from the engine.
        click.ClickException: the engine has refused a question.
        RuntimeError: the engine holds blocks or slots, or has found errors, when it is idle.
    """
    prompts = [prompt for questions in suite for prompt in questions.prompts]
    sampling = [params for questions in suite for params in _sampling(questions, budgets)]
    started = time.perf_counter()
    with LLM(model, **options) as llm:
        ready = time.perf_counter()
        results = _answers(llm, prompts, sampling)
        ended = time.perf_counter()
        status = idle_status(llm)
    if status.integrity_errors or status.blocks_used or status.slots_used:
        raise RuntimeError(f"the engine is not sound: {status}")
    facts = {"ready_seconds": ready - started, **_facts(status, ended - ready)}
    return EngineRun(_by_name(suite, results), facts)


def _answers(
    llm: LLM, prompts: Sequence[str | Conversation], sampling: Sequence[SamplingParams]
) -> list[RequestOutput]:
    progress = sys.stderr.isatty()
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        return llm.generate(texts, sampling, progress=progress)
    return llm.chat([prompt for prompt in prompts if is_conversation(prompt)], sampling, progress=progress)


def idle_status(llm: LLM) -> Status:
    """The engine's status once the step that was planned ahead of the last token has returned too."""
    deadline = time.monotonic() + IDLE_SECONDS
    while (status := llm.status()).blocks_used and time.monotonic() < deadline:
        time.sleep(0.01)
    return status


def _sampling(questions: Questions, budgets: Mapping[str, int]) -> Sequence[SamplingParams]:
    budget = budgets.get(questions.name)
    return [msgspec.structs.replace(params, kv_budget=budget) for params in questions.sampling]


def _by_name(suite: Sequence[Questions], results: Sequence[RequestOutput]) -> dict[str, Sequence[RequestOutput]]:
    named, end = {}, 0
    for questions in suite:
        start, end = end, end + len(questions.prompts)
        named[questions.name] = accepted(questions.name, results[start:end])
    return named


def _facts(status: Status, seconds: float) -> dict[str, Any]:
    counters = ("output_tokens", "prompt_tokens", "steps", "compressions", "shadow_compressions", "stalled_seconds")
    troubles = ("preemptions", "swaps", "failed_jobs", "worker_restarts")
    sizes = ("max_model_len", "block_size", "blocks_total", "blocks_peak", "slots_total")
    return {
        "seconds": seconds,
        "output_tokens_per_second": status.output_tokens / seconds,
        **{name: getattr(status, name) for name in counters + troubles + sizes},
    }
