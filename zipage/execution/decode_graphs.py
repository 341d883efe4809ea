"""Decode steps of any batch size as CUDA graphs: one for each padded size, in one memory pool."""

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zipage.execution.upload import upload

DecodeFunction = Callable[[Tensor, bool], Tensor]
"""`decode(inputs [k, B] int64, is_greedy) -> tokens [B]`, without reading anything back from the device."""


def padded_sizes(most: int) -> list[int]:
    """1, 2, 4, the multiples of 8 below `most`, and `most`."""
    return sorted({size for size in (1, 2, 4, *range(8, most, 8)) if size < most} | {most})


class DecodeGraphs:
    """Runs a decode function on a batch that is padded to one of a few sizes; on a GPU by replaying a graph."""

    def __init__(self, decode: DecodeFunction, padding: Sequence[int], most: int, device: torch.device) -> None:
        """Args: decode; padding: the k inputs of a request that is none; most: largest batch; device."""
        self._decode = decode
        self._padding = list(padding)
        self._sizes = padded_sizes(most)
        self._device = device
        column = torch.tensor(self._padding, dtype=torch.int64, device=device)
        # Every size reads its inputs from the beginning of the same memory.
        self._inputs = column.repeat_interleave(most)
        self._graphs: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every size, greedy and not, the largest first, so that the others fit into its memory."""
        memory = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            for is_greedy in (False, True):
                self._fill(size, [[number] * size for number in self._padding])
                inputs = self._inputs_of(size)
                # Kernels are compiled and libraries initialised outside of the capture.
                self._decode(inputs, is_greedy)
                graph = torch.cuda.CUDAGraph()
                torch.cuda.synchronize(self._device)
                with torch.cuda.graph(graph, pool=memory):
                    tokens = self._decode(inputs, is_greedy)
                self._graphs[size, is_greedy] = graph, tokens
        gc.collect()
        torch.cuda.empty_cache()

    def run(self, inputs: Sequence[Sequence[int]], is_greedy: bool) -> Tensor:
        """Decode a batch.

        Args:
            inputs: k lists of B numbers.
            is_greedy: whether the likeliest tokens are all that is asked for.

        Returns:
            [B] int64, valid until the next call.
        """
        count = len(inputs[0])
        size = next(size for size in self._sizes if size >= count)
        rows = zip(inputs, self._padding, strict=True)
        self._fill(size, [[*numbers, *([padding] * (size - count))] for numbers, padding in rows])
        if self._device.type != "cuda":
            return self._decode(self._inputs_of(size), is_greedy)[:count]
        graph, tokens = self._graphs[size, is_greedy]
        graph.replay()
        return tokens[:count]

    def _fill(self, size: int, rows: Sequence[Sequence[int]]) -> None:
        (numbers,) = upload([[number for row in rows for number in row]], self._device)
        self._inputs[: len(numbers)].copy_(numbers)

    def _inputs_of(self, size: int) -> Tensor:
        return self._inputs[: size * len(self._padding)].view(len(self._padding), size)
