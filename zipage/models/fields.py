"""Checked reading of the JSON files of a checkpoint: a wrong field is named together with its value."""

import math
import sys
from pathlib import Path
from typing import Any

import msgspec

from zipage.errors import ModelError

MAX_INTEGER = 2**31 - 1
MAX_SHOWN = 200


class JsonFields:
    """The fields of one JSON object. A field that is null counts as missing, as it does in transformers."""

    def __init__(self, values: dict[str, Any], path: Path, prefix: str = "") -> None:
        """`path` is the file that messages name; `prefix` is put before field names of a nested object."""
        self.values = values
        self.path = path
        self.prefix = prefix

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def error(self, name: str, expected: str) -> ModelError:
        """The error for a field that is not `expected`, or that is missing."""
        if not self.has(name):
            return ModelError(f"{self.path}: {self.prefix}{name} is missing; it must be {expected}")
        shown = repr(self.values[name])
        if len(shown) > MAX_SHOWN:
            shown = shown[:MAX_SHOWN] + "..."
        return ModelError(f"{self.path}: {self.prefix}{name} must be {expected}, not {shown}")

    def optional_integer(self, name: str, low: int, high: int = MAX_INTEGER) -> int | None:
        """An integer in [low, high], or None where it is missing; raises ModelError for anything else."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"an integer in [{low}, {high}]")
        return value

    def integer(self, name: str, low: int, high: int = MAX_INTEGER) -> int:
        """An integer in [low, high]; raises ModelError for anything else."""
        value = self.optional_integer(name, low, high)
        if value is None:
            raise self.error(name, f"an integer in [{low}, {high}]")
        return value

    def optional_number(self, name: str, low: float, high: float = math.inf, *, low_open: bool = False) -> float | None:
        """A finite number in [low, high], (low, high] with `low_open`, or None where it is missing.

        Raises:
            ModelError: anything else.
        """
        value = self.values.get(name)
        if value is None:
            return None
        in_range = type(value) in (int, float) and low <= value <= min(high, sys.float_info.max)
        if not in_range or (low_open and value == low):
            raise self.error(name, _number_range(low, high, low_open))
        return float(value)

    def number(self, name: str, low: float, high: float = math.inf, *, low_open: bool = False) -> float:
        """A finite number in [low, high] or (low, high]; raises ModelError for anything else."""
        value = self.optional_number(name, low, high, low_open=low_open)
        if value is None:
            raise self.error(name, _number_range(low, high, low_open))
        return value

    def optional_boolean(self, name: str) -> bool | None:
        """A boolean, or None where it is missing; raises ModelError for anything else."""
        value = self.values.get(name)
        if value is not None and type(value) is not bool:
            raise self.error(name, "true or false")
        return value

    def optional_token_ids(self, name: str, high: int = MAX_INTEGER) -> tuple[int, ...] | None:
        """A token id or a list of token ids in [0, high], or None where it is missing; else raises ModelError."""
        value = self.values.get(name)
        if value is None:
            return None
        token_ids = value if isinstance(value, list) else [value]
        if not all(type(token_id) is int and 0 <= token_id <= high for token_id in token_ids):
            raise self.error(name, f"a token id or a list of token ids in [0, {high}]")
        return tuple(token_ids)

    def nested(self, name: str) -> "JsonFields":
        """The fields of the object under `name`; raises ModelError where it is no object."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return JsonFields(value, self.path, f"{self.prefix}{name}.")


def read_fields(path: Path) -> JsonFields:
    """Read a file that holds one JSON object.

    Raises:
        ModelError: the file cannot be read, is no JSON, or holds no object.
    """
    try:
        values = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} must hold one JSON object, not a {type(values).__name__}")
    return JsonFields(values, path)


def _number_range(low: float, high: float, low_open: bool) -> str:
    left = "(" if low_open else "["
    right = "inf)" if math.isinf(high) else f"{high}]"
    return f"a number in {left}{low}, {right}"
