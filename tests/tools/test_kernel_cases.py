"""Every kernel's benchmark case, at a small shape: what it times is right by its own check, and the check can fail."""

import pytest
import torch

from tools import kernel_cases_attention, kernel_cases_eviction, kernel_cases_layers
from tools.kernel_cases import CASES, Shape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = {
    "heads": 8,
    "kv_heads": 2,
    "head_dim": 64,
    "layers": 2,
    "batch": 3,
    "context": 80,
    "tokens": 48,
    "entries": 208,
    "keep": 160,
    "size": 256,
    "vocabulary": 3000,
    "columns": 128,
    "outputs": 128,
}


@pytest.fixture(autouse=True)
def low_precision(monkeypatch):
    """Triton's interpreter multiplies the bit patterns of bfloat16."""
    if DEVICE.type == "cpu":
        for module in (kernel_cases_attention, kernel_cases_eviction, kernel_cases_layers):
            monkeypatch.setattr(module, "DTYPE", torch.float16)


def small(shape: Shape) -> Shape:
    return {name: SMALL.get(name, value) for name, value in shape.items()}


@pytest.mark.parametrize("kernel", CASES)
def test_what_is_timed_is_right(kernel):
    torch.manual_seed(0)
    build, shapes = CASES[kernel]
    work = build(DEVICE, **small(shapes[0]))
    assert work.num_bytes > 0
    assert len(work.calls) >= 1
    assert work.check() <= 1


def test_lengths_that_differ():
    torch.manual_seed(0)
    build, shapes = CASES["paged_decode_attention"]
    shape = {"group": 4, "block_size": 16} | small(shapes[0])
    equal, varied = build(DEVICE, **shape), build(DEVICE, **shape, shortest=20)
    assert varied.check() <= 1
    assert not varied.sdpa
    entry_bytes = 2 * 2 * shape["head_dim"] * shape["heads"] // shape["group"]
    assert equal.num_bytes - varied.num_bytes == (3 * 80 - (20 + 50 + 80)) * entry_bytes


@pytest.mark.parametrize("kernel", ["anchor_score", "select_entries", "paged_decode_attention"])
def test_a_wrong_kernel_is_found(kernel, monkeypatch):
    torch.manual_seed(0)
    build, shapes = CASES[kernel]
    module = kernel_cases_attention if kernel == "paged_decode_attention" else kernel_cases_eviction
    real = getattr(module, kernel)

    def almost(*args, **kwargs):
        result = real(*args, **kwargs)
        # The output is what is returned, or the last argument.
        output = args[-1] if result is None else result
        return output.add_(1)

    monkeypatch.setattr(module, kernel, almost)
    assert build(DEVICE, **small(shapes[0])).check() > 1
