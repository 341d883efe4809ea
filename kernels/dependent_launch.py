"""Programmatic dependent launch: a kernel is brought to the device while its predecessor in the stream still runs.

Several small kernels in a row otherwise wait for each other's ends, and then for their own beginnings. A kernel takes
part by calling `wait_for_predecessor` in all of its programs, before it touches memory: what earlier kernels
write is there then, and what they read may be overwritten.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: disable-error-code="no-untyped-def"

from functools import cache

import torch
import triton
import triton.language as tl

# Compute capability from which devices know it.
_FIRST_CAPABILITY = (9, 0)


@cache
def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Arguments for the launch of a kernel that takes part: its `dependent`, and Triton's option where that is true."""
    is_known = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY
    return {"dependent": True, "launch_pdl": True} if is_known else {"dependent": False}


@triton.jit
def wait_for_predecessor(dependent: tl.constexpr):
    """Wait until the kernel before has ended, and let the one after this be brought to the device."""
    if dependent:
        tl.extra.cuda.gdc_wait()
        # Not earlier: whoever waits for this kernel must find that all kernels before it have ended too.
        tl.extra.cuda.gdc_launch_dependents()
