"""How the entries that survive are chosen: names for `scoring` texts of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import click

from zipage.config import parse_scoring
from zipage.errors import ConfigError

FULL_KV = "full KV"
"""The name under which the run without a budget is reported."""

POLICIES = {
    "default": "default",
    "paper": "paper",
    # Only the sinks and the most recent entries, whatever the budget: at such a temperature the redundancy of all
    # entries is the same number, attention has no weight, and ties go to the more recent entry.
    "recency": "paper,pooling=off,redundancy=lightning,attention_weight=0,redundancy_temperature=1e30",
    "random": "paper,order=random",
}
"""Policies that need no `scoring` text on the command line."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A name to report, and a text for `zipage.config.parse_scoring`."""

    name: str
    scoring: str


def parse_policy(text: str) -> Policy:
    """Parse a name of `POLICIES`, or `NAME=SCORING`.

    Raises:
        click.BadParameter: there is no such name, or the scoring is none.
    """
    name, separator, scoring = text.partition("=")
    if not separator:
        if name not in POLICIES:
            raise click.BadParameter(f"policy {name!r} must be one of {', '.join(POLICIES)}, or NAME=SCORING")
        return Policy(name, POLICIES[name])
    if not name or "," in name or name == FULL_KV:
        raise click.BadParameter(f"{text!r} is not NAME=SCORING with a NAME of its own, without commas")
    try:
        parse_scoring(scoring)
    except ConfigError as error:
        raise click.BadParameter(f"policy {name}: {error}") from None
    return Policy(name, scoring)


def parse_policies(texts: Sequence[str]) -> list[Policy]:
    """Parse policies with different names.

    Raises:
        click.BadParameter: as for `parse_policy`, or a name comes twice.
    """
    policies = [parse_policy(text) for text in texts]
    names = [policy.name for policy in policies]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise click.BadParameter(f"policies must have different names; there are several of {', '.join(twice)}")
    return policies
