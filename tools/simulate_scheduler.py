"""Paper-style scheduling, ours and full KV compared in virtual time, at 8 to 4,096 requests.

    python -m tools.simulate_scheduler --model qwen3-8b --pool-gib 10 --kv-budget 1024 --prompt 256 --output-length 3072

The scheduler is the real one. The decode worker and the compression worker are a cost model of one H200
(`tools/simulation/cost_model.py` says which of its numbers are measured and which assumed), so what it shows are
differences between ways of scheduling, not the speed of an engine.
"""

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec
from click import FloatRange, IntRange

from tools.simulation.cost_model import JOB_OVERHEAD, CostModel, cost_model
from tools.simulation.measurements import Measurements
from tools.simulation.policies import EngineSize, engine_limits, policies
from tools.simulation.report import Summary, summarize, table_heading, table_row
from tools.simulation.shapes import SHAPES
from tools.simulation.simulation import Simulation
from tools.simulation.workload import Lengths, Workload, generate_workload
from zipage.errors import ConfigError
from zipage.scheduling.limits import SchedulerLimits

NUMBERS_OF_REQUESTS = (8, 32, 128, 512, 2048, 4096)


class LengthsType(click.ParamType):
    """`N` or `LOW-HIGH`."""

    name = "N|LOW-HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Lengths:
        if isinstance(value, Lengths):
            return value
        low, separator, high = value.partition("-")
        try:
            lengths = Lengths(int(low), int(high if separator else low))
        except ValueError:
            self.fail(f"{value!r} is not a number or two with a - between", param, ctx)
        if not 1 <= lengths.low <= lengths.high:
            self.fail(f"{value!r} is not a range of numbers from 1 up", param, ctx)
        return lengths


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command's, but for those that say what is run and where results go."""

    model: str
    pool_gib: float
    swap_gib: float
    kv_budget: int
    block_size: int
    max_num_seqs: int
    prompt: Lengths
    output_length: Lengths
    arrivals: float
    seed: int
    job_overhead_us: float
    pressure: bool
    no_hybrid: bool

    @property
    def size(self) -> EngineSize:
        return EngineSize(
            pool_gib=self.pool_gib,
            swap_gib=self.swap_gib,
            kv_budget=self.kv_budget,
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.prompt.high + self.output_length.high,
        )

    @property
    def costs(self) -> CostModel:
        return cost_model(SHAPES[self.model], self.block_size, self.job_overhead_us / 1e6)

    def workload(self, num_requests: int) -> Workload:
        """The same one for every policy."""
        return generate_workload(num_requests, self.prompt, self.output_length, self.arrivals, self.seed)


def simulate(limits: SchedulerLimits, costs: CostModel, workload: Workload) -> Summary:
    """Run one policy to the end of a workload."""
    measured = Measurements()
    simulation = Simulation(limits, costs, workload, [measured])
    return summarize(simulation, measured, simulation.run())


def limits_of_policies(options: Options, only: Sequence[str]) -> dict[str, SchedulerLimits]:
    """The engines that are compared, by policy.

    Raises:
        click.UsageError: one of them cannot be.
    """
    engines = policies(options.pressure, not options.no_hybrid)
    try:
        return {
            name: engine_limits(SHAPES[options.model], options.size, engine)
            for name, engine in engines.items()
            if not only or name in only
        }
    except ConfigError as error:
        raise click.UsageError(str(error)) from None


@click.command()
@click.option("--model", type=click.Choice(list(SHAPES)), default="qwen3-8b", show_default=True)
@click.option(
    "--pool-gib", type=FloatRange(min=0), default=10.0, show_default=True, help="GiB of device memory for the KV cache."
)
@click.option(
    "--swap-gib",
    type=FloatRange(min=0),
    default=4.0,
    show_default=True,
    help="GiB of host memory for swapped requests.",
)
@click.option("--kv-budget", default=1024, show_default=True, help="Tokens, of the policies that have a budget.")
@click.option("--block-size", default=16, show_default=True)
@click.option("--max-num-seqs", default=1024, show_default=True, help="Most requests that run at once.")
@click.option("--prompt", type=LengthsType(), default="256", show_default=True, help="Tokens of a prompt.")
@click.option("--output-length", type=LengthsType(), default="2048", show_default=True, help="Tokens of an output.")
@click.option("--requests", type=IntRange(min=1), multiple=True, default=NUMBERS_OF_REQUESTS, show_default=True)
@click.option("--arrivals", type=FloatRange(min=0), default=0.0, show_default=True, help="Per second; 0: all at once.")
@click.option("--seed", default=0, show_default=True, help="Of lengths and arrivals.")
@click.option(
    "--job-overhead-us",
    type=FloatRange(min=0),
    default=1e6 * JOB_OVERHEAD,
    show_default=True,
    help="Microseconds of a compression or swap beyond its memory traffic.",
)
@click.option("--pressure", is_flag=True, help="Ours compresses only when blocks run short.")
@click.option("--no-hybrid", is_flag=True, help="Every request waits for a query slot.")
@click.option("--policy", "only", type=click.Choice(list(policies(False, True))), multiple=True, help="Only this one.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here as JSON.")
def main(requests: tuple[int, ...], only: tuple[str, ...], output: Path | None, **fields: Any) -> None:
    """Print a table of ways of scheduling at several numbers of requests."""
    options = Options(**fields)
    limits = limits_of_policies(options, only)
    click.echo(table_heading())
    results = []
    for num_requests in requests:
        for policy, policy_limits in limits.items():
            summary = simulate(policy_limits, options.costs, options.workload(num_requests))
            click.echo(table_row(num_requests, policy, summary))
            results.append({"requests": num_requests, "policy": policy} | asdict(summary))
    if output is not None:
        facts = {
            "command": shlex.join(["python", "-m", "tools.simulate_scheduler", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {name: version(name) for name in ("msgspec", "zipage")} | {"python": platform.python_version()},
            "costs": asdict(options.costs),
            "limits": {policy: msgspec.to_builtins(policy_limits) for policy, policy_limits in limits.items()},
        }
        output.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
