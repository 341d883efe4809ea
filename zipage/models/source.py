"""From the name of a model to the local directory that holds it. Imports neither torch nor transformers."""

import importlib.resources
import os
from pathlib import Path

from zipage.errors import ModelError
from zipage.models.checkpoint_files import weight_files
from zipage.models.config import load_model_config

DEFAULT_MODEL = "reasoner-8m"

# Configuration, weights, tokenizer files and chat template of the top folder; no code and nothing pickled.
DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"]


def default_model() -> Path:
    """The directory of the model that ships with zipage."""
    return Path(str(importlib.resources.files("zipage.bundled").joinpath(DEFAULT_MODEL)))


def resolve_model(name: str, revision: str | None) -> Path:
    """The directory of a model: `name` itself where it is one, else a snapshot of the Hugging Face hub repository.

    A repository's config.json is downloaded and checked before its weights are.

    Args:
        name: a local directory, or a hub id such as `Qwen/Qwen3-0.6B`.
        revision: branch, tag or commit of the hub repository.

    Raises:
        ModelError: there is no such model, it cannot be downloaded, its config.json is missing or not supported, or
            it has no safetensors weights.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if revision is not None:
            raise ModelError(f"revision {revision!r} needs a hub id, but model {name!r} is a local directory")
        directory = Path(path)
        load_model_config(directory)
    else:
        _check_hub_id(name, path)
        load_model_config(_download(name, revision, ["config.json"]))
        directory = _download(name, revision, DOWNLOAD_PATTERNS)
    weight_files(directory)
    return directory


def _check_hub_id(name: str, path: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if os.path.exists(path):
        raise ModelError(f"model {name!r} is a file; it must be a directory or a hub id")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelError(f"model {name!r} is neither an existing directory nor a valid hub id") from None


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    # Imported here because it takes longer than everything else that a local model needs of this module.
    from huggingface_hub import errors, snapshot_download

    try:
        directory = snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"])
    except errors.GatedRepoError:
        raise ModelError(
            f"model {name!r} is gated: ask for access on https://huggingface.co/{name} and set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"model {name!r} is neither an existing directory nor a model on the hub (a private one needs HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelError(f"model {name!r} has no revision {revision!r} on the hub") from None
    except errors.LocalEntryNotFoundError:
        raise ModelError(
            f"model {name!r} is not an existing directory, the hub cannot be reached, and its cache does not hold it"
        ) from None
    # A download fails in as many ways as its transport libraries have exceptions.
    except Exception as error:
        raise ModelError(f"model {name!r} cannot be downloaded: {type(error).__name__}: {error}") from error
    return Path(directory)
