"""A steady decode step on a GPU against its floor: the bytes it must read over the copy bandwidth of the same run.

    python -m tools.bench_decode_step --case qwen3-8b:64:2048 --case qwen3-0.6b:128:2048 --output result.json

A case is shape, batch and resident entries. Weights are random; the step is the graph that the engine replays.
"""

import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from tools.bench_models import SHAPES, write_config
from zipage.config import EngineConfig
from zipage.engine_messages import PoolGeometry
from zipage.execution.device_executor import DeviceExecutor
from zipage.execution.pool import allocate_on_device
from zipage.models.config import ModelConfig, load_model_config
from zipage.models.decoder import Decoder

_BLOCK_SIZE = 16
_REPEATS = 20
_DEVICE = torch.device("cuda")


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 4 GiB."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device=_DEVICE).random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source)) / 1000)


def median_ms(function: Any) -> float:
    """Median time of a call in milliseconds, by events, after a warm-up."""
    times = []
    for _ in range(_REPEATS + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[3:])[_REPEATS // 2]


@torch.inference_mode()
def measure(shape: str, batch: int, resident: int, is_greedy: bool) -> dict[str, float]:
    """Step time of one case, its bytes, and how it divides."""
    with tempfile.TemporaryDirectory() as directory:
        write_config(shape, Path(directory))
        model = load_model_config(Path(directory))
    decoder = Decoder(model, torch.bfloat16, _DEVICE)
    for parameter in decoder.parameters():
        parameter.normal_(0, parameter.shape[-1] ** -0.5)
    blocks = -(-resident // _BLOCK_SIZE)
    pool = allocate_on_device(_geometry(model, batch * blocks), _DEVICE)
    pool.keys.normal_()
    pool.values.normal_()
    config = EngineConfig(model="random", max_num_seqs=batch, block_size=_BLOCK_SIZE)
    executor = DeviceExecutor(decoder, pool, config, model.max_model_len)
    tables = torch.randperm(batch * blocks, device=_DEVICE).view(batch, blocks)
    executor.table.block_tables[:batch, :blocks] = tables
    executor.table.options.temperatures.fill_(0.0 if is_greedy else 0.8)
    started = time.perf_counter()
    executor.graphs.capture()
    capture_seconds = time.perf_counter() - started
    last = (tables[:, -1] * _BLOCK_SIZE + (resident - 1) % _BLOCK_SIZE).tolist()
    inputs = [list(range(batch)), [resident - 1] * batch, last, [resident] * batch, [-1] * batch, [1] * batch]
    step = median_ms(lambda: executor.graphs.run(inputs, is_greedy))
    # The embedding is looked up, not read, but the output embedding is read in any case.
    weights = sum(parameter.nbytes for parameter in {id(p): p for p in decoder.parameters()}.values())
    if not model.tie_word_embeddings:
        weights -= decoder.embedding.nbytes
    entry_bytes = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 2
    kv_bytes = batch * resident * entry_bytes
    return {"step_ms": step, "weight_bytes": weights, "kv_bytes": kv_bytes, "capture_s": capture_seconds}


def _geometry(model: ModelConfig, num_blocks: int) -> PoolGeometry:
    return PoolGeometry(
        num_layers=model.num_layers,
        num_blocks=num_blocks,
        block_size=_BLOCK_SIZE,
        num_query_heads=model.num_query_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype="bfloat16",
    )


@click.command()
@click.option("--case", "cases", multiple=True, required=True, help=f"SHAPE:BATCH:RESIDENT; {', '.join(SHAPES)}.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
def main(cases: tuple[str, ...], output: Path) -> None:
    """Measure steady decode steps."""
    bandwidth = copy_bandwidth()
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name(),
        "copy_bytes_per_second": bandwidth,
        "cases": {},
    }
    for case in cases:
        shape, batch, resident = case.split(":")
        for name, is_greedy in (("greedy", True), ("sampled", False)):
            measured = measure(shape, int(batch), int(resident), is_greedy)
            gc.collect()
            torch.cuda.empty_cache()
            floor = 1000 * (measured["weight_bytes"] + measured["kv_bytes"]) / bandwidth
            measured |= {"floor_ms": floor, "over_floor": measured["step_ms"] / floor}
            result["cases"][f"{case} {name}"] = measured
            click.echo(f"{case} {name}: {measured['step_ms']:.3f} ms, {measured['over_floor']:.2f} x {floor:.3f} ms")
    output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
