"""Every kernel on a GPU against its floor, and against PyTorch's attention where that does the same work.

    python -m tools.bench_kernels --output result.json

The floor of a case is the larger of two times: the bytes that it has to move over the bandwidth of the fastest large
copy on the device, and the operations of its matrix products over the rate of a large one. Both rates are measured in
the same run.
Every case is compared with the reference before it is timed; the exit status is 1 where one is wrong. A time is the
median over replays of a CUDA graph of many calls, which go round in more memory than the device's cache holds.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from tools.kernel_cases import CASES, Shape, cases
from tools.kernel_copy import copy_rates
from tools.kernel_work import Call, Work

MATRIX_SIZE = 8192
CALLS_IN_GRAPH = 16
REPLAY_MILLISECONDS, MIN_REPLAYS, MAX_REPLAYS = 200.0, 5, 20


@dataclass(frozen=True)
class Rates:
    """What the device does in a second: bytes read and written, by way of copying, multiplications and additions."""

    copies: dict[str, float]
    num_operations: float

    @property
    def num_bytes(self) -> float:
        """The fastest copy's."""
        return max(self.copies.values())


def measure_rates(device: torch.device) -> Rates:
    """Copy memory on the device, and multiply random matrices in bfloat16."""
    copies = copy_rates(device)
    left, right = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, dtype=torch.bfloat16, device=device)
    return Rates(copies, 2e6 * MATRIX_SIZE**3 / microseconds([lambda: left @ right]))


def microseconds(calls: Sequence[Call]) -> float:
    """Device time of one call, when the calls take turns."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph, num_rounds = torch.cuda.CUDAGraph(), -(-CALLS_IN_GRAPH // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(num_rounds):
            for call in calls:
                call()
    graph.replay()
    times = [_replay_milliseconds(graph)]
    num_replays = min(max(int(REPLAY_MILLISECONDS / times[0]), MIN_REPLAYS), MAX_REPLAYS)
    times += [_replay_milliseconds(graph) for _ in range(num_replays)]
    return 1e3 * statistics.median(times) / (num_rounds * len(calls))


def _replay_milliseconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(build: Callable[..., Work], shape: Shape, device: torch.device, rates: Rates) -> dict[str, Any]:
    """Check and time one case; a wrong one is not timed."""
    torch.manual_seed(0)
    work = build(device, **shape)
    error = work.check()
    result: dict[str, Any] = {"correct": error <= 1, "error": f"{error:.3g} of what is allowed"}
    if not result["correct"]:
        return result
    time = microseconds(work.calls)
    floor = 1e6 * max(work.num_bytes / rates.num_bytes, work.num_operations / rates.num_operations)
    result |= {"microseconds": round(time, 2), "floor": round(floor, 2), "share_of_floor": round(floor / time, 3)}
    if work.sdpa:
        sdpa = microseconds(work.sdpa)
        result |= {"sdpa": round(sdpa, 2), "speed_of_sdpa": round(sdpa / time, 3)}
    return result


def measure_all(kernels: tuple[str, ...], device: torch.device, rates: Rates) -> list[dict[str, Any]]:
    """Measure the cases of these kernels, or of all if none is named."""
    results = []
    for kernel, build, shape in cases(kernels):
        try:
            result = measure(build, shape, device, rates)
        except Exception as error:  # What one kernel raises must not hide what the others do.
            result = {"correct": False, "error": repr(error)}
        results.append({"kernel": kernel, "shape": shape} | result)
        torch.cuda.empty_cache()
    return results


def show(results: list[dict[str, Any]]) -> None:
    """Print a line for each case, with that part of its shape in which the cases of its kernel differ."""
    click.echo(f"{'kernel and case':<64}{'us':>9}{'floor':>9}{'share':>7}{'SDPA':>9}{'x SDPA':>8}")
    for result in results:
        others = [other["shape"] for other in results if other["kernel"] == result["kernel"]]
        varied = {
            key: value for key, value in result["shape"].items() if any(other.get(key) != value for other in others)
        }
        name = f"{result['kernel']} " + " ".join(f"{key}={value}" for key, value in varied.items())
        if not result["correct"]:
            click.echo(f"{name:<64} WRONG {result['error']}")
            continue
        line = f"{name:<64}{result['microseconds']:>9.1f}{result['floor']:>9.1f}{result['share_of_floor']:>7.2f}"
        if "sdpa" in result:
            line += f"{result['sdpa']:>9.1f}{result['speed_of_sdpa']:>8.2f}"
        click.echo(line)


@click.command()
@click.option(
    "--kernel", "kernels", multiple=True, type=click.Choice(list(CASES)), help="Only this kernel; repeatable."
)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here as JSON.")
def main(kernels: tuple[str, ...], output: Path | None) -> None:
    """Check and time the kernels on a CUDA device."""
    if not torch.cuda.is_available():
        raise click.ClickException("a CUDA device is needed")
    device = torch.device("cuda")
    with torch.inference_mode():
        rates = measure_rates(device)
        torch.cuda.empty_cache()
        results = measure_all(kernels, device, rates)
    if output is not None:
        facts = {
            "command": shlex.join(["python", "-m", "tools.bench_kernels", *sys.argv[1:]]),
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name(device),
            "versions": {name: version(name) for name in ("torch", "triton")} | {"cuda": torch.version.cuda},
            "copy_bytes_per_second": round(rates.num_bytes),
            "copies": {way: round(rate) for way, rate in rates.copies.items()},
            "matrix_operations_per_second": round(rates.num_operations),
        }
        output.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")
    show(results)
    click.echo(f"copy {rates.num_bytes / 1e12:.2f} TB/s, matrix product {rates.num_operations / 1e12:.0f} TFLOP/s")
    if not all(result["correct"] for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
