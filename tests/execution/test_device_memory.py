"""How a GPU's memory is divided."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_checkpoint

from zipage.config import EngineConfig
from zipage.errors import ConfigError
from zipage.execution.pool import allocate_on_device
from zipage.execution.pool_size import choose_geometry, device_pool_bytes
from zipage.execution.working_memory import run_largest_step
from zipage.models.config import load_model_config
from zipage.models.loading import load_decoder

GIB = 1 << 30


def test_the_pool_is_what_weights_and_steps_leave_of_the_share():
    config = EngineConfig(model="m", gpu_memory_utilization=0.75)
    assert device_pool_bytes(config, free=60 * GIB, total=80 * GIB, working=5 * GIB) == 35 * GIB


def test_a_share_that_leaves_nothing_is_refused():
    config = EngineConfig(model="m", gpu_memory_utilization=0.25)
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization must be in \(0.312, 1\]"):
        device_pool_bytes(config, free=60 * GIB, total=80 * GIB, working=5 * GIB)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization must be in \(0, 1\]"):
        EngineConfig(model="m", gpu_memory_utilization=share)


def test_the_largest_step_samples_for_every_row(tmp_path: Path):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = EngineConfig(model="m", max_num_batched_tokens=40, max_num_seqs=3, block_size=8)
    model = load_model_config(tiny_checkpoint(tmp_path, "qwen3", num_hidden_layers=1, max_position_embeddings=32))
    pool = allocate_on_device(choose_geometry(config, model, "float32", 1 << 20, 0), device)
    tokens = run_largest_step(load_decoder(tmp_path, model, torch.float32, device), config, pool)
    assert tokens.shape == (3,)
    # The last entry of the prompt has been written.
    assert pool.keys[0, 4, :, -1].count_nonzero() > 0
