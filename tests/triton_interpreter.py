"""Triton's interpreter, without the quarter of its time in which it looks for what it has found before.

Before each kernel, and each function that a kernel calls, it replaces the builtins of Triton's language by its own, for
which it goes through all members of every module of the language.
"""

import functools
import inspect
from typing import Any

from triton.language.core import is_builtin
from triton.runtime import interpreter


def remember_builtins() -> None:
    """Have the interpreter replace the same builtins as always, by names that are looked up once for each module."""
    interpreter._patch_builtin = _patch_builtin


@functools.cache
def _names(module: Any) -> list[str]:
    """Called for the first time before anything is replaced."""
    return [name for name, member in inspect.getmembers(module) if is_builtin(member)]


def _patch_builtin(module: Any, builder: Any, scope: Any) -> None:
    for name in _names(module):
        member = getattr(module, name)
        if is_builtin(member):
            interpreter._patch_attr(module, name, member, builder, scope)
