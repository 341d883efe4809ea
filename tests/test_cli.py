"""`zipage run` on prompts, `zipage serve`, and errors, against a fake engine."""

import random
import re

import pytest
from command_line import CommandLine, make_model_without_chat_template
from fake_engine import QUEUE_FULL, FakeEngine, answer_with
from msgspec.structs import fields

from zipage.bundled.tasks.families import DESCRIPTIONS, FAMILIES
from zipage.cli import zipage as group
from zipage.config import PAPER_SCORING, EngineConfig
from zipage.errors import EngineError
from zipage.models.source import default_model
from zipage.sampling_params import SamplingParams
from zipage.supervisor import Supervisor


@pytest.fixture
def engine(tmp_path):
    with FakeEngine(f"ipc://{tmp_path}/engine") as engine:
        yield engine


@pytest.fixture
def command(engine, monkeypatch, capfd):
    return CommandLine(engine, monkeypatch, capfd)


def test_a_single_prompt_streams_to_standard_output(command):
    code, out, err = command("run", "bundled", "a b")
    assert (code, out) == (0, "USER:A B\n")
    assert command.engine.requests[0].stream
    lines = err.splitlines()
    assert lines[:4] == [
        "starting an engine for bundled",
        "model bundled, at most 16384 tokens a sequence, 256 sequences at once",
        "KV cache of 1600 tokens (100 blocks of 16)",
        "the bundled model knows nothing but tasks that begin with Run, Branch, Recur, Ledger, Multiply, Weigh; "
        "`zipage run` alone shows one",
    ]
    assert re.fullmatch(r"1 request, 3 output tokens in \d+\.\d s: \d+\.\d tokens/s", lines[4])
    assert lines[5] == (
        "TTFT mean 500.0 ms, p50 500.0 ms, p99 500.0 ms; TPOT mean 500.0 ms, p50 500.0 ms, p99 500.0 ms"
    )
    assert lines[6] == "1 compression, peak pool use 40% (40 of 100 blocks), prefix cache hits 0%"


def test_several_prompts_are_answered_in_order(command):
    code, out, _ = command("run", "bundled", "a", "b", "c")
    assert code == 0
    assert out == "=== prompt 1 of 3 ===\nUSER:A\n=== prompt 2 of 3 ===\nUSER:B\n=== prompt 3 of 3 ===\nUSER:C\n"
    assert len(command.engine.submits) == 1


def test_completions_of_one_prompt_are_labelled(command):
    _, out, _ = command("run", "bundled", "a", "--n", 2)
    assert out == "--- completion 0 ---\nUSER:A\n--- completion 1 ---\nUSER:A\n"


def test_a_refused_prompt_does_not_lose_the_others(command):
    code, out, err = command("run", "bundled", "a", "refuse", "c", "--quiet")
    assert (code, out) == (1, "=== prompt 1 of 3 ===\nUSER:A\n=== prompt 3 of 3 ===\nUSER:C\n")
    assert err.splitlines() == [
        "zipage: error: prompt 2: prompt must be shorter",
        "zipage: error: 1 of 3 prompts were refused or not answered to the end",
    ]


@pytest.mark.parametrize("options, notes", [([], ["(ended by its deadline)"]), (["--quiet"], [])])
def test_what_a_deadline_has_ended_is_an_answer(command, options, notes):
    code, out, err = command("run", "bundled", "deadline b", "--deadline", 3, *options)
    assert (code, out) == (0, "USER:DEADLINE B\n")
    assert [line for line in err.splitlines() if line.startswith("(")] == notes
    assert ("1 request (1 completion ended by deadline), " in err) == bool(notes)


@pytest.mark.parametrize(
    "reason, message", [("error", "failed several times to compress"), ("abort", "before it was done")]
)
def test_what_the_engine_has_ended_is_a_failure_after_the_text_so_far(command, reason, message):
    code, out, err = command("run", "bundled", f"{reason} b", "--quiet")
    assert (code, out) == (1, f"USER:{reason.upper()} B\n")
    assert re.fullmatch(f"zipage: error: the engine ended the request.*{message}.*\n", err)


def test_answers_that_were_cut_short_are_named_among_several(command):
    code, out, err = command("run", "bundled", "deadline x", "error x", "c")
    assert code == 1
    assert [line for line in out.splitlines() if line[0] != "="] == ["USER:DEADLINE X", "USER:ERROR X", "USER:C"]
    assert "\nprompt 1: ended by its deadline\nzipage: error: prompt 2: the engine ended the request, " in err
    assert err.endswith("zipage: error: 1 of 3 prompts were refused or not answered to the end\n")


def test_completions_that_were_cut_short_are_named(command):
    code, out, err = command("run", "bundled", "deadline", "--n", 2)
    assert (code, out) == (0, "--- completion 0 ---\nUSER:DEADLINE\n--- completion 1 ---\nUSER:DEADLINE\n")
    assert "\nprompt 1, completion 0: ended by its deadline\nprompt 1, completion 1: ended by its deadline\n" in err


def test_a_full_engine_is_a_refusal(command):
    code, out, err = command("run", "bundled", "full", "--quiet")
    assert (code, out, err) == (1, "", f"zipage: error: {QUEUE_FULL}\n")


def test_prompts_of_the_command_line_never_fill_the_queue(command):
    command("run", "bundled", *"abcdefg", "--max-num-seqs", 2, "--max-waiting", 1)
    assert [len(submit.requests) for submit in command.engine.submits] == [3, 1, 1, 1, 1]


def test_standard_input_is_one_prompt_unchanged(command):
    code, out, _ = command("run", "bundled", stdin="a b\nc\n")
    assert (code, out) == (0, "USER:A B\nC\n\n")
    assert command.engine.requests[0].messages == [{"role": "user", "content": "a b\nc\n"}]


@pytest.mark.parametrize(
    "wrong, verdict", [(False, "The answer is exact"), (True, "The answer is not exact; it should end in ")]
)
@pytest.mark.parametrize("seed", [7, 8])
def test_without_any_prompt_the_bundled_model_shows_an_example(tmp_path, monkeypatch, capfd, seed, wrong, verdict):
    draws = random.Random(seed)
    family = draws.choice(list(FAMILIES))
    example = FAMILIES[family](draws, 300)
    answer = example.text[:-1] if wrong else example.text
    with FakeEngine(f"ipc://{tmp_path}/engine", lambda request: answer_with(request, list(answer))) as solver:
        code, out, err = CommandLine(solver, monkeypatch, capfd)("run", "--seed", seed)
    assert (code, out) == (0, answer + "\n")
    assert f"{DESCRIPTIONS[family]}. The message:\n\n{example.prompt}\n" in err
    assert (verdict + example.answer if wrong else verdict) in err
    [request] = solver.requests
    assert (request.messages, request.sampling) == (example.messages, SamplingParams(temperature=0.0))


@pytest.mark.parametrize(
    "finish_reason, code, message",
    [("deadline", 0, "(ended by its deadline)"), ("error", 1, "zipage: error: the engine ended the request")],
)
def test_an_example_that_was_cut_short_gets_no_verdict(tmp_path, monkeypatch, capfd, finish_reason, code, message):
    def script(request):
        return answer_with(request, ["so far"], finish_reason)

    with FakeEngine(f"ipc://{tmp_path}/engine", script) as solver:
        result = CommandLine(solver, monkeypatch, capfd)("run")
    assert result[:2] == (code, "so far\n")
    assert message in result[2]
    assert "The answer is" not in result[2]


def test_sampling_options_reach_the_request(command):
    arguments = "--temperature 0 --top-k 5 --top-p 0.5 --min-p 0.1 --repetition-penalty 1.5 --presence-penalty 1"
    arguments += " --frequency-penalty -1 --stop x --stop y --stop-token-id 3 --stop-token-id 4 --max-tokens 9"
    arguments += " --min-tokens 2 --ignore-eos --include-stop --no-skip-special-tokens --seed 7"
    arguments += " --priority -5 --deadline 2.5"
    command("run", "bundled", "a", *arguments.split())
    assert command.engine.requests[0].sampling == SamplingParams(
        temperature=0.0,
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        stop=("x", "y"),
        stop_token_ids=(3, 4),
        max_tokens=9,
        min_tokens=2,
        ignore_eos=True,
        include_stop=True,
        skip_special_tokens=False,
        priority=-5,
        deadline=2.5,
    )
    assert command.supervisors[0].config.seed == 7


@pytest.mark.parametrize("name", ["run", "serve"])
def test_engine_options_reach_the_engine(command, name):
    command.failure = "it ended"
    arguments = "--max-model-len 100 --max-num-seqs 3 --max-num-batched-tokens 50 --dtype float32 --device cpu --seed 7"
    arguments += " --kv-budget 500 --block-size 16 --kv-cache-gb 0.5 --scoring paper --ready-timeout 9 --threads 2"
    arguments += " --compress pressure --shadow-share 0.5 --no-hybrid-scheduling --swap-space-gb 1.5 --max-waiting 8"
    arguments += " --no-overlap"
    command(name, "bundled", *(["a"] if name == "run" else []), *arguments.split())
    assert command.supervisors[0].config == EngineConfig(
        model=str(default_model()),
        max_model_len=100,
        max_num_seqs=3,
        max_num_batched_tokens=50,
        dtype="float32",
        device="cpu",
        seed=7,
        kv_budget=500,
        block_size=16,
        kv_cache_gb=0.5,
        scoring=PAPER_SCORING,
        compress="pressure",
        shadow_share=0.5,
        overlap=False,
        hybrid_scheduling=False,
        swap_space_gb=1.5,
        max_waiting=8,
        ready_timeout=9.0,
        threads=2,
    )


def test_without_options_everything_has_its_default(command):
    command("run", "bundled", "a")
    assert command.supervisors[0].config == EngineConfig(model=str(default_model()))
    assert command.engine.requests[0].sampling == SamplingParams()


@pytest.mark.parametrize(
    "budget, text", [(500, "500 -> 512 tokens (32 blocks of 16)"), (512, "512 tokens (32 blocks of 16)")]
)
def test_the_effective_budget_is_told(command, budget, text):
    _, _, err = command("run", "bundled", "a", "--kv-budget", budget)
    assert f"KV budget {text}\n" in err
    assert err.endswith(f", KV budget {text}\n")


def test_hybrid_scheduling_can_be_named(command):
    command("run", "bundled", "a", "--hybrid-scheduling", "--compress", "always")
    assert command.supervisors[0].config == EngineConfig(model=str(default_model()))


def test_quiet_leaves_the_answer_alone(command):
    assert command("run", "bundled", "a", "--quiet") == (0, "USER:A\n", "")


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--system", "s"], "SYSTEM:S USER:A\n"),
        ([], "USER:A\n"),
        (["--chat"], "USER:A\n"),
        (["--no-chat"], "A\n"),
    ],
)
def test_a_model_with_a_chat_template_gets_messages(command, arguments, text):
    assert command("run", "bundled", "a", *arguments)[1] == text


def test_a_model_without_a_chat_template_gets_text(command, tmp_path):
    model = make_model_without_chat_template(tmp_path / "model")
    assert command("run", model, "a")[1] == "A\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--chat"], "--chat needs a model with a chat template"),
        (["--system", "s"], "--system needs prompts that are sent as chat"),
    ],
)
def test_chat_options_without_a_chat_template_are_one_line(command, tmp_path, arguments, message):
    model = make_model_without_chat_template(tmp_path / "model")
    code, out, err = command("run", model, "a", *arguments)
    assert (code, out, command.supervisors) == (2, "", [])
    assert re.fullmatch(f"zipage: error: .*{message}.*\n", err)


@pytest.mark.parametrize("prompt, told", [("Multiply 417 by 38.", False), ("417 by 38", True)])
def test_the_bundled_model_says_which_prompts_it_knows(command, prompt, told):
    _, _, err = command("run", "bundled", prompt)
    assert ("the bundled model knows nothing but tasks that begin with Run" in err) == told


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "bundled", "--foo"], "No such option"),
        (["run", "bundled", "a", "--max-tokens", "many"], "Invalid value for '--max-tokens'"),
        (["run", "bundled", "a", "--dtype", "int8"], "Invalid value for '--dtype'"),
        (["run", "bundled", "a", "--top-p", "2"], r"top_p must be in \(0, 1\], not 2.0"),
        (["run", "bundled", "a", "--max-num-seqs", "0"], r"max_num_seqs must be in \[1, 65536\], not 0"),
        (["run", "bundled", "a", "--kv-budget", "16"], "kv_budget must be 0 or more than one block"),
        (["run", "bundled", "a", "--scoring", "best"], "scoring must start with one of default, paper"),
        (["run", "bundled", "a", "--compress", "never"], "Invalid value for '--compress'"),
        (["run", "bundled", "a", "--shadow-share", "1.5"], r"shadow_share must be in \[0, 1\], not 1.5"),
        (["run", "bundled", "a", "--swap-space-gb", "-1"], r"swap_space_gb must be in \[0, inf\), not -1.0"),
        (["serve", "bundled", "--max-waiting", "-1"], r"max_waiting must be in \[0, inf\), not -1"),
        (["run", "bundled", "a", "--priority", "101"], r"priority must be in \[-100, 100\], not 101"),
        (["run", "bundled", "a", "--priority", "0.5"], "Invalid value for '--priority'"),
        (["run", "bundled", "a", "--deadline", "0"], r"deadline must be in \(0, inf\), not 0.0"),
        (["run", "bundled", "a", "--deadline", "nan"], r"deadline must be in \(0, inf\), not nan"),
        (["serve", "bundled", "--deadline", "1"], "No such option"),
        (["run", "hello"], "MODEL 'hello' is neither a directory nor a hub id .*'bundled'"),
        (["run", ""], "MODEL '' is neither"),
        (["run", "bundled", "a", "--input", "x"], "--input and prompts cannot be given together"),
        (["run", "bundled", "--output", "x"], "--output needs --input"),
        (["run", "bundled", "--input", "x", "--output", "./x"], "must be two files"),
        (["run", "bundled", "a", "--logprobs", "1"], "--logprobs needs --input"),
        (["run", "bundled", "--n", "2"], "--n needs a prompt"),
        (
            ["run", "bundled", "a", "--no-chat", "--system", "s"],
            "--system needs prompts that are sent as chat messages",
        ),
        (["run", str(default_model())], "there is no prompt"),
        (["serve", "bundled", "a"], "unexpected extra argument"),
        (["jump"], "No such command 'jump'"),
    ],
)
def test_wrong_usage_is_one_line_and_starts_nothing(command, arguments, message):
    code, out, err = command(*arguments)
    assert (code, out, command.supervisors) == (2, "", [])
    assert re.fullmatch(f"zipage: error: .*{message}.*\n", err)


@pytest.mark.parametrize(
    "arguments, stdin, message",
    [
        (["run", "./nothing here", "a"], "", "nothing here"),
        (["run", "bundled", "--input", "no.jsonl"], "", r"No such file or directory: 'no.jsonl'"),
        (["run", "bundled"], b"\xff", "standard input is not UTF-8"),
        (["run", "bundled", "refuse"], "", "prompt must be shorter"),
        (["run", "bundled", "garbage"], "", "malformed answer from the engine"),
        (["run", "bundled", "\udcff"], "", "request cannot be sent: .*surrogates not allowed"),
        (["serve", "--address-file", "/nowhere/x"], "", "No such file or directory"),
    ],
)
def test_a_failure_is_one_line(command, arguments, stdin, message):
    code, out, err = command(*arguments, "--quiet", stdin=stdin)
    assert (code, out) == (1, "")
    assert re.fullmatch(f"zipage: error: .*{message}.*\n", err)


def test_an_engine_that_does_not_start_is_one_line(command, monkeypatch):
    def start(config):
        raise EngineError("decode worker failed:\nout of memory")

    monkeypatch.setattr(Supervisor, "start", start)
    for name in ("run", "serve"):
        assert command(name, "--quiet") == (1, "", "zipage: error: decode worker failed: out of memory\n")


def test_an_engine_that_ends_is_one_line(command):
    command.failure = "decode worker was killed by SIGKILL"
    code, _, err = command("run", "bundled", "hang", "b", "--quiet")
    assert (code, err) == (1, "zipage: error: decode worker was killed by SIGKILL\n")


def test_serve_ends_with_its_engine_and_removes_the_address(command, tmp_path):
    command.failure = "decode worker ended"
    path = tmp_path / "address"
    code, out, err = command("serve", "--address-file", path, "--kv-budget", 500)
    assert (code, out) == (1, f"{command.engine.address}\n")
    assert not path.exists()
    assert err.splitlines()[0] == "starting an engine for bundled"
    assert err.splitlines()[-2:] == [
        "KV budget 500 -> 512 tokens (32 blocks of 16)",
        "zipage: error: decode worker ended",
    ]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "--help"], ["serve", "--help"], ["--version"]])
def test_help_and_version_go_to_standard_output(command, arguments):
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert out


def test_help_names_ranges_and_every_field(command):
    _, text, _ = command("run", "--help")
    text = " ".join(text.split())
    for part in ("1 to 65536", "in (0, 1]", "0 to 4096", "[-2, 2]", "8, 16, 32, 64, 128, 256", "1 to 128", "0 to 20"):
        assert part in text
    for part in (
        "[always|pressure]",
        "-100 to 100",
        "Share of the KV blocks, 0 to 1",
        "Seconds, above 0",
        "1 to 100 percent",
    ):
        assert part in text
    options = {parameter.name for parameter in group.commands["run"].params}
    assert set(EngineConfig.__struct_fields__) <= options
    assert set(SamplingParams.__struct_fields__) - {"logit_bias"} <= options
    assert set(EngineConfig.__struct_fields__) <= {parameter.name for parameter in group.commands["serve"].params}


@pytest.mark.parametrize(
    "name",
    ["compress", "shadow_share", "overlap", "hybrid_scheduling", "max_waiting", "mps", "priority", "deadline"],
)
def test_help_names_the_default(name):
    [option] = [parameter for parameter in group.commands["run"].params if parameter.name == name]
    defaults = {True: "on", None: "none"}
    struct = SamplingParams if name in SamplingParams.__struct_fields__ else EngineConfig
    [default] = [field.default for field in fields(struct) if field.name == name]
    assert option.help.endswith(f" [{defaults.get(default, default)}].")
