"""zipage: an LLM inference engine for reasoning models with a bounded KV cache.

Importing this package loads neither torch nor transformers; those live in the engine's worker processes.
"""

from zipage.async_client import AsyncClient
from zipage.client import Client
from zipage.config import EngineConfig, ScoringOptions
from zipage.errors import ConfigError, EngineError, InvalidRequestError, ModelError, ZipageError
from zipage.llm import LLM
from zipage.results import Completion, RequestOutput
from zipage.sampling_params import SamplingParams

__all__ = [
    "LLM",
    "AsyncClient",
    "Client",
    "Completion",
    "ConfigError",
    "EngineConfig",
    "EngineError",
    "InvalidRequestError",
    "ModelError",
    "RequestOutput",
    "SamplingParams",
    "ScoringOptions",
    "ZipageError",
]
