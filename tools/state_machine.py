"""Prompts of the bundled model's task, from its own task.py."""

import importlib.util
import random
from pathlib import Path
from types import ModuleType

from zipage.models.source import default_model


def load_task(model_dir: Path | None = None) -> ModuleType:
    """The module `task.py` beside the bundled model's weights."""
    path = (model_dir or default_model()) / "task.py"
    spec = importlib.util.spec_from_file_location("state_machine_task", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def samples(count: int, num_states: int, num_steps: int, seed: int) -> list[tuple[str, str]]:
    """`count` pairs of (prompt, exact continuation)."""
    task, rng = load_task(), random.Random(seed)
    return [task.sample(rng, num_states, num_steps) for _ in range(count)]
