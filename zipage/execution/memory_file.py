"""Memory that outlives the process that uses it: a file without a name, as tensors."""

import math
import mmap
import os

import torch

# Page size, and what CUDA copies fastest from.
_ALIGNMENT = 4096


class MemoryFile:
    """Tensors one after another in a memory file, which holds them as long as any process has its descriptor.

    Attributes:
        tensors: their contents are zeros at first, and afterwards what the last process has left there.
    """

    def __init__(self, descriptor: int, layout: list[tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Size the file and map it.

        Args:
            descriptor: of a memory file, whose size is 0 or what the same layout has made it.
            layout: shape and dtype of each tensor.

        Raises:
            OSError: there is less memory than that.
        """
        self._descriptor = descriptor
        lengths = [math.prod(shape) * dtype.itemsize for shape, dtype in layout]
        self._starts = [0]
        for length in lengths:
            self._starts.append(self._starts[-1] + -(-length // _ALIGNMENT) * _ALIGNMENT)
        os.ftruncate(descriptor, self._starts[-1])
        self._raw = torch.frombuffer(mmap.mmap(descriptor, self._starts[-1]), dtype=torch.uint8)
        self.tensors = [
            self._raw[start : start + length].view(dtype).view(shape)
            for start, length, (shape, dtype) in zip(self._starts, lengths, layout, strict=False)
        ]

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


def _drop_last_error() -> None:
    """Have a launch report the error that CUDA remembers, which the next one would be blamed for otherwise."""
    try:
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError:
        return
