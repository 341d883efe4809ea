"""From a model's name to its directory. The hub is replaced at `snapshot_download`; nothing here uses the network."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny_models import edit_config, tiny_checkpoint

from zipage.errors import ModelError
from zipage.models.source import default_model, resolve_model


class FakeHub:
    """A hub with one repository: copies the top-level files that the patterns allow, and records the calls."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository = repository
        self.cache = cache
        self.calls: list[tuple[str, str | None]] = []

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]
    ) -> str:
        self.calls.append((name, revision))
        paths = [str(file.relative_to(self.repository)) for file in self.repository.rglob("*") if file.is_file()]
        self.cache.mkdir(exist_ok=True)
        for path in huggingface_hub.utils.filter_repo_objects(
            paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (self.cache / path).parent.mkdir(exist_ok=True)
            shutil.copy(self.repository / path, self.cache / path)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tiny_checkpoint(tmp_path / "repository"), tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_default_model_is_a_model() -> None:
    assert resolve_model(str(default_model()), None) == default_model()


def test_local_directory(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(hub.repository), None) == hub.repository
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/repository", None) == hub.repository
    assert hub.calls == []


def test_revision_of_local_directory(hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="revision 'main' needs a hub id"):
        resolve_model(str(hub.repository), "main")


def test_local_directory_without_config(hub: FakeHub) -> None:
    (hub.repository / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(str(hub.repository), None)


def test_local_directory_with_pickled_weights(hub: FakeHub) -> None:
    (hub.repository / "model.safetensors").rename(hub.repository / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safetensors"):
        resolve_model(str(hub.repository), None)


def test_file_instead_of_directory(hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(hub.repository / "model.safetensors"), None)


@pytest.mark.parametrize(
    "name", ["/no/such/directory", "./models", "a/b/c", "two words", "~nobody/x", "x" * 5000, "\0"]
)
def test_name_that_is_neither_directory_nor_hub_id(name: str, hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="neither an existing directory nor a valid hub id"):
        resolve_model(name, None)
    assert hub.calls == []


def test_hub_download_takes_no_code_and_nothing_pickled(hub: FakeHub) -> None:
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "chat_template.jinja"}
    unwanted = {"modeling_x.py", "pytorch_model.bin", "model.pt", "original/config.json", "onnx/model.safetensors"}
    for name in wanted | unwanted:
        (hub.repository / name).parent.mkdir(exist_ok=True)
        (hub.repository / name).touch()
    assert resolve_model("someone/model", "v1") == hub.cache
    assert set(hub.calls) == {("someone/model", "v1")}
    downloaded = {str(file.relative_to(hub.cache)) for file in hub.cache.rglob("*") if file.is_file()}
    assert wanted <= downloaded
    assert not unwanted & downloaded


def test_unsupported_hub_model_is_refused_before_its_weights_are_downloaded(hub: FakeHub) -> None:
    edit_config(hub.repository, architectures=["MistralForCausalLM"])
    with pytest.raises(ModelError, match="MistralForCausalLM"):
        resolve_model("someone/model", None)
    assert [file.name for file in hub.cache.iterdir()] == ["config.json"]


def test_hub_model_without_safetensors(hub: FakeHub) -> None:
    (hub.repository / "model.safetensors").rename(hub.repository / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        resolve_model("someone/model", None)


def http_error(kind: type[Exception]) -> Exception:
    """An HTTP error of huggingface_hub without a real response."""
    error = kind.__new__(kind)
    Exception.__init__(error, "refused")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError), "someone/model.*gated.*HF_TOKEN"),
        (http_error(errors.RepositoryNotFoundError), "someone/model.*neither an existing directory nor a model on"),
        (http_error(errors.RevisionNotFoundError), "no revision 'v1'"),
        (errors.LocalEntryNotFoundError("offline"), "someone/model.*cannot be reached"),
        (OSError("disk full"), "someone/model.*cannot be downloaded: OSError: disk full"),
    ],
)
def test_failed_download(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=message):
        resolve_model("someone/model", "v1")
