"""`LLM`: an engine of one's own, started, used and ended from Python."""

import contextlib
import difflib
import os
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from zipage.client import Client
from zipage.client_requests import Conversation, OnResult, Prompt, Sampling, split_conversations, split_prompts
from zipage.config import EngineConfig, explain, parse_scoring
from zipage.errors import ConfigError
from zipage.messages import Output, Status
from zipage.models.source import default_model, resolve_model
from zipage.results import RequestOutput
from zipage.sampling_params import SamplingParams
from zipage.supervisor import Supervisor
from zipage.tracing import prepare_trace_directory

# The name of the model that ships with zipage; a directory of that name is `./bundled`.
BUNDLED = "bundled"


def make_config(model: str | Path | None, options: Mapping[str, Any]) -> EngineConfig:
    """The config of an engine, with `model` and its config.json found and checked before anything is started.

    Args:
        model: a local directory, a hub id, or `None` or `bundled` for the model that ships with zipage.
        options: fields of `EngineConfig`; `scoring` may also be text for `parse_scoring`.

    Raises:
        ConfigError: an unknown option, a wrong type, or a value outside its range.
        ModelError: there is no such model, or it is not supported.
    """
    fields = dict(options)
    names = [name for name in EngineConfig.__struct_fields__ if name != "model"]
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
            raise ConfigError(f"unknown option {name}{hint}")
    if isinstance(fields.get("scoring"), str):
        fields["scoring"] = parse_scoring(fields["scoring"])
    fields["model"] = str(default_model()) if model in (None, BUNDLED) else os.fspath(model)
    try:
        config = msgspec.convert(fields, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"invalid option: {explain(error, EngineConfig, fields)}") from None
    # The processes get the directory, so that all of them read the same files whatever happens on the hub.
    directory = resolve_model(config.model, config.revision)
    trace = None if config.trace is None else prepare_trace_directory(config.trace)
    return msgspec.structs.replace(config, model=str(directory), revision=None, trace=trace)


class LLM:
    """An engine and a client of it; a context manager. Not thread-safe: other threads use `Client(llm.address)`.

    Attributes:
        config: the engine's options; `model` is the directory.
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        """Start an engine and wait until it is ready.

        Args:
            model: a local directory or a hub id; `None` is the model that ships with zipage.
            options: fields of `EngineConfig`; `scoring` may be text such as `paper,window=32`.

        Raises:
            ConfigError: an unknown option, or a value outside its range.
            ModelError: the model cannot be found or is not supported.
            EngineError: a process of the engine did not start.
        """
        self.config = make_config(model, options)
        supervisor = Supervisor.start(self.config)
        self._client = Client(supervisor.address, check=supervisor.check)
        self._end = weakref.finalize(self, _end, self._client, supervisor)

    @property
    def address(self) -> str:
        """Where further clients connect."""
        return self._client.address

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Sampling = None, *, progress: bool = False
    ) -> list[RequestOutput]:
        """Continue prompts, as `Client.generate` does; with `progress`, a progress bar on stderr."""
        with self._watched(len(split_prompts(prompts)[0]), progress) as on_result:
            return self._client.generate(prompts, sampling_params, on_result=on_result)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Sampling = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer conversations, as `Client.chat` does; with `progress`, a progress bar on stderr."""
        with self._watched(len(split_conversations(messages)[0]), progress) as on_result:
            return self._client.chat(messages, sampling_params, on_result=on_result)

    def stream(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None
    ) -> Generator[Output, None, None]:
        """Yield one answer piece by piece, as `Client.stream` does."""
        return self._client.stream(prompt, sampling_params)

    def status(self) -> Status:
        """What the engine holds now.

        Raises:
            EngineError: the engine has ended.
        """
        return self._client.status()

    def shutdown(self) -> None:
        """End the engine; unfinished requests are lost. May be called again."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    @contextlib.contextmanager
    def _watched(self, total: int, shown: bool) -> Iterator[OnResult | None]:
        if not shown:
            yield None
            return
        # Imported here because every process of an engine imports this module, and none of them draws.
        from zipage.commands.progress import STATUS_SECONDS, ProgressBar

        with ProgressBar(total) as bar, self._client.watching_status(bar.show_status, STATUS_SECONDS):
            yield bar.advance


def _end(client: Client, supervisor: Supervisor) -> None:
    try:
        client.close()
    finally:
        supervisor.shutdown()
