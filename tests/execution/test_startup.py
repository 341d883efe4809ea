"""Options that do not fit the machine or the model are refused before anything is allocated."""

import pytest
import torch

from zipage.errors import ConfigError
from zipage.execution.startup import start_decoding
from zipage.llm import make_config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_gb": 1e-6}, "raise kv_cache_gb"),
        ({"kv_cache_gb": 0.001, "kv_budget": 4096}, "lower kv_budget"),
        ({"max_model_len": 20_000}, r"max_model_len must be in \[2, 8192\]"),
        ({"kv_cache_gb": 0.001, "max_model_len": 8_000}, "raise kv_cache_gb or set kv_budget"),
        ({"kv_cache_gb": 1e5}, r"kv_cache_gb must be in \(0, "),
    ],
)
def test_what_does_not_fit_says_what_would(options, message):
    with pytest.raises(ConfigError, match=message):
        start_decoding(make_config(None, {"device": "cpu", "threads": 1, **options}), None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a CUDA device")
def test_cuda_without_a_gpu():
    with pytest.raises(ConfigError, match="device is cuda, but"):
        start_decoding(make_config(None, {"device": "cuda"}), None)
