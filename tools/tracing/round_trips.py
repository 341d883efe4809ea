"""Where the time between two steps goes: scheduler, decode worker's host, device, and the ways between them."""

from dataclasses import dataclass

import numpy as np

from tools.tracing.merge import EngineTrace, Window
from tools.tracing.spread import MICROSECONDS, Spread, spread
from tools.tracing.steps import Steps
from tools.tracing.tables import Integers, SpanTable, last_before


@dataclass(frozen=True)
class RoundTripFigures:
    """Parts of a step's way, in microseconds; each is counted in the window where it ends.

    Attributes:
        finish_step_us: the scheduler takes in a step's result.
        finish_to_plan_us: end of `finish step` to the start of the next plan, where that comes before the next result.
        plan_us: the scheduler plans a step.
        plan_to_launch_us: end of `plan` to the start of the same step's `launch` in the decode worker (on a GPU).
        launch_us: the decode worker launches a step (on a GPU).
        plan_to_device_us: end of `plan` to the start of the same step on the device; planned ahead, a step waits there
            for the one before it.
        device_to_finish_us: end of a step on the device to the start of the same step's `finish step`.
    """

    finish_step_us: Spread
    finish_to_plan_us: Spread
    plan_us: Spread
    plan_to_launch_us: Spread
    launch_us: Spread
    plan_to_device_us: Spread
    device_to_finish_us: Spread


def round_trip_figures(trace: EngineTrace, steps: Steps, plans: SpanTable, window: Window) -> RoundTripFigures:
    """The figures of the way of a step; `plans` and `steps` are of the whole trace."""
    launches = trace.spans("decode", "host", names=("launch",))
    finishes = trace.spans("scheduler", "scheduler", names=("finish step",))

    def within(starts: Integers, ends: Integers) -> Spread:
        counted = (window.start <= ends) & (ends <= window.end)
        return spread((ends - starts)[counted], MICROSECONDS)

    planned = steps.plans >= 0
    by_end = np.argsort(steps.ends, kind="stable")
    return RoundTripFigures(
        finish_step_us=within(finishes.starts, finishes.ends),
        finish_to_plan_us=within(*_to_next_plan(finishes, plans)),
        plan_us=within(plans.starts, plans.ends),
        plan_to_launch_us=within(
            *_after(launches.column("step"), launches.starts, plans.column("step"), plans.ends),
        ),
        launch_us=within(launches.starts, launches.ends),
        plan_to_device_us=within(plans.ends[steps.plans[planned]], steps.starts[planned]),
        device_to_finish_us=within(
            *_after(finishes.column("step"), finishes.starts, steps.ids[by_end], steps.ends[by_end]),
        ),
    )


def _after(
    steps: Integers, starts: Integers, earlier_steps: Integers, earlier_ends: Integers
) -> tuple[Integers, Integers]:
    """The end of the last thing earlier for the same step, and the start, of each thing that has an earlier one."""
    earlier = last_before(steps, starts, earlier_steps, earlier_ends)
    return earlier_ends[earlier[earlier >= 0]], starts[earlier >= 0]


def _to_next_plan(finishes: SpanTable, plans: SpanTable) -> tuple[Integers, Integers]:
    """Ends of results, and the starts of the plans that came next, before another result."""
    following = np.searchsorted(plans.starts, finishes.ends)
    limits = np.append(finishes.starts[1:], np.iinfo(np.int64).max)
    plan_starts = np.append(plans.starts, np.iinfo(np.int64).max)[following]
    answered = plan_starts < limits
    return finishes.ends[answered], plan_starts[answered]
