"""`LLM` and `make_config`, with a fake engine behind the supervisor."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine, FakeSupervisor, fake_status

from zipage.config import PAPER_SCORING, EngineConfig, ScoringOptions
from zipage.errors import ConfigError, EngineError, InvalidRequestError, ModelError
from zipage.llm import LLM, make_config
from zipage.models.source import default_model
from zipage.sampling_params import SamplingParams
from zipage.supervisor import Supervisor


@pytest.fixture
def supervisors(tmp_path, monkeypatch):
    """Every supervisor that was started."""
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        started: list[FakeSupervisor] = []

        def start(config):
            started.append(FakeSupervisor(engine, config))
            return started[-1]

        monkeypatch.setattr(Supervisor, "start", start)
        yield started


@pytest.mark.parametrize("model", [None, "bundled", str(default_model()), default_model()])
def test_a_config_names_the_models_directory(model):
    assert make_config(model, {"kv_budget": 100}) == EngineConfig(model=str(default_model()), kv_budget=100)


@pytest.mark.parametrize(
    "scoring, expected",
    [("paper", PAPER_SCORING), ("default,window=8", ScoringOptions(window=8)), (PAPER_SCORING, PAPER_SCORING)],
)
def test_scoring_is_text_or_options(scoring, expected):
    assert make_config(None, {"scoring": scoring}).scoring == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_num_seq": 5}, "unknown option max_num_seq; did you mean max_num_seqs"),
        ({"xyz": 5}, "unknown option xyz; there are revision, max_model_len, "),
        ({"max_num_seqs": 0}, r"max_num_seqs must be in \[1, 65536\], not 0"),
        ({"max_num_seqs": "8"}, r"Expected `int`, got `str` - at `\$.max_num_seqs`"),
        ({"dtype": "int8"}, "dtype"),
        ({"scoring": "default,reduce=sum"}, "reduce must be one of mean, max, not 'sum'"),
        ({"compress": "never"}, "compress must be one of always, pressure, not 'never'"),
        ({"shadow_share": -0.1}, r"shadow_share must be in \[0, 1\], not -0.1"),
        ({"hybrid_scheduling": 1}, r"Expected `bool`, got `int` - at `\$.hybrid_scheduling`"),
        ({"swap_space": 1}, "unknown option swap_space; did you mean swap_space_gb"),
        ({"swap_space_gb": -1}, r"swap_space_gb must be in \[0, inf\), not -1"),
        ({"max_waiting": -1}, r"max_waiting must be in \[0, inf\), not -1"),
        ({"scoring": "best"}, "scoring must start with one of default, paper"),
        ({"scoring": 5}, "scoring"),
    ],
)
def test_a_bad_option_is_refused_before_anything_is_started(supervisors, options, message):
    with pytest.raises(ConfigError, match=message):
        LLM(**options)
    assert supervisors == []


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("./nothing here", {}, "nothing here"),
        (None, {"revision": "main"}, "revision 'main' needs a hub id"),
    ],
)
def test_a_bad_model_is_refused_before_anything_is_started(supervisors, model, options, message):
    with pytest.raises(ModelError, match=message):
        LLM(model, **options)
    assert supervisors == []


def test_a_model_of_another_kind_is_refused_before_anything_is_started(supervisors, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(ModelError, match="architectures"):
        LLM(tmp_path)
    assert supervisors == []


def test_an_llm_answers_and_ends_its_engine(supervisors, capfd):
    with LLM(max_num_seqs=4) as llm:
        assert supervisors[0].config == llm.config == make_config(None, {"max_num_seqs": 4})
        assert llm.address == supervisors[0].address
        assert [result.text for result in llm.generate(["a", "b"], SamplingParams(max_tokens=5))] == ["A", "B"]
        assert llm.chat([{"role": "user", "content": "x"}])[0].text == "USER:X"
        assert [output.text for output in llm.stream("a b")] == ["A", " ", "B"]
        assert llm.status() == fake_status(1)
        with pytest.raises(InvalidRequestError, match="shorter"):
            llm.generate("refuse")
        assert supervisors[0].shutdowns == 0
    assert supervisors[0].shutdowns == 1
    llm.shutdown()
    assert supervisors[0].shutdowns == 1
    with pytest.raises(EngineError, match="client is closed"):
        llm.generate("a")
    assert capfd.readouterr() == ("", "")


def test_options_of_an_llm_and_of_its_requests(supervisors, tmp_path):
    options = {"compress": "pressure", "shadow_share": 0.5, "hybrid_scheduling": False, "swap_space_gb": 2}
    params = SamplingParams(priority=-1, deadline=60)
    with LLM(**options, max_waiting=4) as llm:
        assert llm.config == EngineConfig(model=str(default_model()), **options, max_waiting=4)
        assert llm.generate("deadline", params)[0].completions[0].finish_reason == "deadline"
        with pytest.raises(InvalidRequestError, match="max_waiting lets 0 to 4 do so"):
            llm.generate("full", params)
        llm.chat([{"role": "user", "content": "x"}], params)
        list(llm.stream("a", params))
        requests = supervisors[0].engine.requests
    assert [(each.sampling.priority, each.sampling.deadline) for each in requests] == [(-1, 60.0)] * 4


def test_an_llm_that_is_dropped_ends_its_engine(supervisors):
    llm = LLM()
    del llm
    assert supervisors[0].shutdowns == 1


def test_progress_changes_no_result(supervisors):
    with LLM() as llm:
        assert [result.text for result in llm.generate(["a", "b"], progress=True)] == ["A", "B"]
        assert llm.chat([{"role": "user", "content": "x"}], progress=True)[0].text == "USER:X"


def test_the_supervisors_failure_ends_a_call(supervisors):
    with LLM() as llm:
        stream = llm.stream("hang")
        next(stream)
        supervisors[0].fail("decode worker was killed by SIGKILL")
        with pytest.raises(EngineError, match="killed by SIGKILL"):
            next(stream)


def test_clients_and_the_command_line_load_no_model_library():
    code = (
        "import sys, zipage.cli, zipage.llm; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
