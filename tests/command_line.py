"""Runs command lines of zipage in this process, against a fake engine."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_engine import FakeEngine, FakeSupervisor

from zipage.cli import main
from zipage.models.source import default_model
from zipage.supervisor import Supervisor


@dataclass
class CommandLine:
    """Calls `zipage`; standard input is no terminal.

    Attributes:
        engine: what answers.
        supervisors: every supervisor that was started.
        failure: why every engine ends as soon as it is ready.
    """

    engine: FakeEngine
    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    supervisors: list[FakeSupervisor] = field(default_factory=list)
    failure: str | None = None

    def __post_init__(self) -> None:
        def start(config):
            supervisor = FakeSupervisor(self.engine, config)
            if self.failure is not None:
                supervisor.fail(self.failure)
            self.supervisors.append(supervisor)
            return supervisor

        self.monkeypatch.setattr(Supervisor, "start", start)

    def __call__(self, *arguments: object, stdin: str | bytes = "") -> tuple[int, str, str]:
        """Returns exit code, standard output and standard error; every engine has been shut down once."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        self.monkeypatch.setattr("signal.signal", lambda *_: None)
        code = main([str(argument) for argument in arguments])
        assert [supervisor.shutdowns for supervisor in self.supervisors] == [1] * len(self.supervisors)
        return code, *self.capfd.readouterr()


def make_model_without_chat_template(directory: Path) -> Path:
    """The bundled model's files, of which none has a chat template."""
    directory.mkdir()
    for file in default_model().iterdir():
        (directory / file.name).symlink_to(file)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (directory / "tokenizer_config.json").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
