"""Memory that outlives the process that uses it: a file without a name, as tensors."""

import math
import mmap
import os
from collections.abc import Sequence
from typing import Self

import torch

from zipage.errors import EngineError

# Shape and dtype of each tensor.
Layout = Sequence[tuple[tuple[int, ...], torch.dtype]]

# Page size, and what CUDA copies fastest from.
_ALIGNMENT = 4096


class MemoryFile:
    """Tensors one after another in a memory file, which holds them as long as any process has its descriptor.

    Attributes:
        tensors: their contents are zeros at first, and afterwards what any process has left there.
    """

    def __init__(self, descriptor: int, layout: Layout) -> None:
        """Map a file that has been sized.

        Args:
            descriptor: of a memory file.
            layout: of what is in it.

        Raises:
            EngineError: the file is smaller than its tensors.
        """
        self._descriptor = descriptor
        lengths = [math.prod(shape) * dtype.itemsize for shape, dtype in layout]
        self._starts = _starts(layout)
        total, size = self._starts[-1], os.fstat(descriptor).st_size
        if size < total:
            raise EngineError(f"a memory file has {size} bytes, and its tensors need {total}")
        self._raw = torch.frombuffer(mmap.mmap(descriptor, total), dtype=torch.uint8)
        self.tensors = [
            self._raw[start : start + length].view(dtype).view(shape)
            for start, length, (shape, dtype) in zip(self._starts, lengths, layout, strict=False)
        ]

    @classmethod
    def sized(cls, descriptor: int, layout: Layout) -> Self:
        """Size a file, whose other sizes are nobody's any more, and map it.

        Raises:
            OSError: there is less memory than that.
        """
        os.ftruncate(descriptor, _starts(layout)[-1])
        return cls(descriptor, layout)

    def reserve(self, index: int, first: int, count: int) -> None:
        """Take memory for `count` parts of tensor `index` from part `first` on, which has none before it is written.

        A part is what one index of the first dimension names. Without this, writing where there is no memory ends the
        process.

        Raises:
            OSError: there is no memory.
        """
        part = self.tensors[index][0]
        length = part.numel() * part.element_size()
        os.posix_fallocate(self._descriptor, self._starts[index] + first * length, count * length)

    def pin(self) -> None:
        """Take memory for everything, and let a GPU copy to and from it by itself.

        Raises:
            OSError: there is no memory.
            MemoryError: it cannot be pinned.
        """
        os.posix_fallocate(self._descriptor, 0, self._starts[-1])
        cudart = torch.cuda.cudart()
        code = cudart.cudaHostRegister(self._raw.data_ptr(), self._raw.numel(), 0)
        if int(code):
            _drop_last_error()
            raise MemoryError(
                f"cannot pin {self._raw.numel()} bytes of host memory for swapped requests: "
                f"{cudart.cudaGetErrorString(code)}"
            )


def _starts(layout: Layout) -> list[int]:
    """Where each tensor starts, in bytes, and where the last one and its padding end."""
    starts = [0]
    for shape, dtype in layout:
        starts.append(starts[-1] + -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT)
    return starts


def _drop_last_error() -> None:
    """Have a launch report the error that CUDA remembers, which the next one would be blamed for otherwise."""
    try:
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError:
        return
