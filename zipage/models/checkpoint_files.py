"""Which files of a checkpoint directory hold its weights."""

import re
from pathlib import Path

from zipage.errors import ModelError
from zipage.models.fields import read_fields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = {".bin", ".pt", ".pth"}

# A bare file name: an index must not lead out of the checkpoint's directory.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a checkpoint: `model.safetensors`, or the shards that its index names, sorted.

    Raises:
        ModelError: there is neither, or the index is broken or names a file that is missing or elsewhere.
    """
    if (model_dir / SINGLE_FILE).is_file():
        return [model_dir / SINGLE_FILE]
    index = model_dir / INDEX_FILE
    if not index.is_file():
        raise _no_weights(model_dir)
    names = set()
    for tensor, name in read_fields(index).nested("weight_map").values.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name):
            raise ModelError(
                f"{index}: weight_map names {name!r} for {tensor}; it must be a .safetensors file of the same directory"
            )
        names.add(name)
    for name in sorted(names):
        if not (model_dir / name).is_file():
            raise ModelError(f"{index}: weight_map names {name}, which is not in {model_dir}")
    if not names:
        raise ModelError(f"{index}: weight_map names no files")
    return [model_dir / name for name in sorted(names)]


def _no_weights(model_dir: Path) -> ModelError:
    message = f"{model_dir} has neither {SINGLE_FILE} nor {INDEX_FILE}"
    pickles = sorted(path.name for path in model_dir.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if pickles:
        message += f"; it has {pickles[0]}, but loading pickled weights can run any code: convert them to safetensors"
    return ModelError(message)
