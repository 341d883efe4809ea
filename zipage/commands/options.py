"""The options that `zipage run` and `zipage serve` take, named like the fields they set.

An option that is not given is left to `EngineConfig` or `SamplingParams`. These also check the values; the help texts
here repeat their ranges.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, TypeVar, get_args

import click

from zipage.config import BLOCK_SIZES, SCORING_PRESETS, Compress, Device, DType, EngineConfig, Mps, ScoringOptions
from zipage.sampling_params import MAX_LOGPROBS, MAX_N, MAX_PRIORITY, MAX_STOP_STRINGS, SamplingParams

Command = TypeVar("Command", bound=Callable[..., Any])

_SCORING_HELP = (
    f"How a compression chooses what survives: {' or '.join(SCORING_PRESETS)}, and changes to its fields: "
    f"{', '.join(ScoringOptions.__struct_fields__)}."
)

ENGINE_OPTIONS = (
    click.option("--revision", help="Branch, tag or commit of a hub id."),
    click.option("--max-model-len", type=int, help="Most tokens of one sequence, 2 or more [the model's own limit]."),
    click.option("--max-num-seqs", type=int, help="Most requests that run at once, 1 to 65536 [256]."),
    click.option("--max-num-batched-tokens", type=int, help="Most tokens computed in one step, 1 or more [2048]."),
    click.option("--dtype", type=click.Choice(get_args(DType)), help="Of weights and KV cache [auto]."),
    click.option("--device", type=click.Choice(get_args(Device)), help="Where the model runs [auto]."),
    click.option("--seed", type=int, help="Fixes all sampling, 0 to 2**63-1 [0]."),
    click.option(
        "--kv-budget",
        type=int,
        help="Most KV entries that a request keeps, in tokens, rounded up to whole blocks; 0 or more than one block, "
        "0 is no limit [0].",
    ),
    click.option("--block-size", type=int, help=f"Tokens per KV block: {', '.join(map(str, BLOCK_SIZES))} [16]."),
    click.option(
        "--kv-cache-gb", type=float, help="Memory for the KV cache in GiB, 1e-6 or more [chosen from free memory]."
    ),
    click.option(
        "--gpu-memory-utilization",
        type=float,
        help="Share of a GPU's memory, in (0, 1], that the engine may use where --kv-cache-gb is not given [0.9].",
    ),
    click.option("--scoring", metavar="PRESET[,FIELD=VALUE...]", help=_SCORING_HELP),
    click.option(
        "--compress",
        type=click.Choice(get_args(Compress)),
        help="Compress a request always when it has filled its budget, or only under pressure, when blocks run short "
        "[always].",
    ),
    click.option(
        "--shadow-share",
        type=float,
        help="Share of the KV blocks, 0 to 1, that compressions may take for themselves, so that their requests go on "
        "decoding meanwhile; 0 has every one wait [0.1].",
    ),
    click.option(
        "--overlap/--no-overlap",
        default=None,
        help="Compress while decoding goes on; off: between steps, for comparison [on].",
    ),
    click.option(
        "--hybrid-scheduling/--no-hybrid-scheduling",
        default=None,
        help="Under a budget, run requests without a query slot on blocks that nobody needs yet [on].",
    ),
    click.option(
        "--swap-space-gb",
        type=float,
        help="Host memory in GiB for the KV cache of preempted requests that have been compressed, 0 or more; 0 "
        "computes them anew instead [an eighth of the free memory, at most 4].",
    ),
    click.option(
        "--max-waiting",
        type=int,
        help="Most completions that wait for admission, 0 or more; beyond these, requests are refused; 0 is no limit "
        "[0].",
    ),
    click.option(
        "--prefix-caching/--no-prefix-caching",
        default=None,
        help="Share KV blocks between requests whose tokens begin alike [on].",
    ),
    click.option(
        "--plan-ahead/--no-plan-ahead",
        default=None,
        help="Send the next step before the tokens of the last one are back [on].",
    ),
    click.option(
        "--mps",
        type=click.Choice(get_args(Mps)),
        help="Run compression beside decoding on a GPU through CUDA MPS; auto does so where the machine has it [auto].",
    ),
    click.option(
        "--mps-thread-percentage",
        type=int,
        help="Share of the GPU's multiprocessors that compression may use under MPS, 1 to 100 percent [no limit].",
    ),
    click.option("--ready-timeout", type=float, help="Seconds until the engine must be ready, 0.1 or more [300]."),
    click.option("--threads", type=int, help="CPU threads of the decode worker, 0 to 4096; 0 is one per core [0]."),
    click.option(
        "--trace",
        type=click.Path(file_okay=False),
        help="Directory into which every process writes what it does and when, for tools.profile_pipeline [none].",
    ),
)

SAMPLING_OPTIONS = (
    click.option("--n", type=int, help=f"Completions per prompt, 1 to {MAX_N} [1]."),
    click.option("--temperature", type=float, help="0 or more; 0 is greedy [the model's]."),
    click.option("--top-k", type=int, help="Sample among the k likeliest tokens, 0 or more; 0 is off [the model's]."),
    click.option(
        "--top-p", type=float, help="Sample among the likeliest tokens of this total, in (0, 1] [the model's]."
    ),
    click.option(
        "--min-p", type=float, help="Drop tokens this much less likely than the best, in [0, 1] [the model's]."
    ),
    click.option("--repetition-penalty", type=float, help="Of tokens seen before, above 0; 1 is off [the model's]."),
    click.option("--presence-penalty", type=float, help="Of tokens in the output, in [-2, 2] [0]."),
    click.option("--frequency-penalty", type=float, help="Of tokens in the output, per occurrence, in [-2, 2] [0]."),
    click.option(
        "--stop",
        multiple=True,
        help=f"A string that ends the output, not empty; may be given {MAX_STOP_STRINGS} times.",
    ),
    click.option(
        "--stop-token-id",
        "stop_token_ids",
        type=int,
        multiple=True,
        help="A token id that ends the output, 0 or more; may be given several times.",
    ),
    click.option("--max-tokens", type=int, help="Most output tokens, 1 or more [as many as the model allows]."),
    click.option("--min-tokens", type=int, help="Fewest output tokens, 0 to max_tokens [0]."),
    click.option(
        "--priority",
        type=int,
        help=f"Class of the prompts, -{MAX_PRIORITY} to {MAX_PRIORITY}; lower ones are served first [0].",
    ),
    click.option(
        "--deadline",
        type=float,
        help="Seconds, above 0, from a prompt's arrival in the engine until its answer ends with what is there [none].",
    ),
    click.option("--ignore-eos", is_flag=True, default=None, help="Go on after the model's end-of-sequence token."),
    click.option(
        "--logprobs",
        type=int,
        help=f"With --input: also the log-probabilities of this many likeliest tokens, 0 to {MAX_LOGPROBS}.",
    ),
    click.option("--include-stop", is_flag=True, default=None, help="Leave the stop string in the text."),
    click.option(
        "--skip-special-tokens/--no-skip-special-tokens",
        default=None,
        help="Leave special tokens out of the text [on].",
    ),
)


def add_options(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    """A decorator that gives a command these options, in this order."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def engine_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `EngineConfig` but `model` among a command's option values, where they were given."""
    return _given(values, set(EngineConfig.__struct_fields__) - {"model"})


def sampling_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SamplingParams` among option values that were given, but for those of the engine's own options."""
    return _given(values, set(SamplingParams.__struct_fields__) - set(EngineConfig.__struct_fields__))


def _given(values: Mapping[str, Any], names: Set[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in names and value is not None and value != ()}
