"""What the decode worker remembers of each row, rebuilt from steps alone, and what it samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from zipage.engine_messages import Admission, SampledToken, Step, StepResult

EOS = 2
FIRST_TOKEN = 3


@dataclass
class Row:
    """A request's counts of tokens and entries.

    Attributes:
        uid: whose row it is.
        position: tokens computed.
        num_entries: resident entries.
        num_uncomputed: known tokens that are not computed.
        num_output: tokens sampled.
        output_length: tokens after which it samples end-of-sequence, that one counted.
        highest_position: tokens computed before it was last preempted, or now, whichever is more.
    """

    uid: int
    position: int
    num_entries: int
    num_uncomputed: int
    num_output: int
    output_length: int
    highest_position: int


@dataclass
class DecodeRows:
    """Applies steps. A request's `params.seed` must be its uid: that is how its row is known to belong to it.

    Sampled tokens are `FIRST_TOKEN + i` for the `i`-th output token, but for end-of-sequence after as many as
    `output_lengths` has for the request.

    Attributes:
        num_tokens, num_entries: tokens that the last step has computed, and entries that it has read.
        recomputed_tokens: tokens computed again after a preemption, since the beginning.
    """

    output_lengths: Mapping[int, int]
    num_tokens: int = 0
    num_entries: int = 0
    recomputed_tokens: int = 0
    _rows: dict[int, Row] = field(default_factory=dict)
    _highest_positions: dict[int, int] = field(default_factory=dict)
    _tokens: list[SampledToken] = field(default_factory=list)

    def execute(self, step: Step) -> StepResult:
        """Compute a step; returns what the decode worker would send."""
        for number in step.released_rows:
            row = self._rows.pop(number)
            self._highest_positions[row.uid] = row.highest_position
        for admission in step.admissions:
            self._rows[admission.row] = self._admitted(admission)
        for update in step.table_updates:
            self._rows[update.row].num_entries = update.resident_length
        self.num_tokens = self.num_entries = 0
        sampled_rows, tokens = [], []
        for work in step.work:
            row = self._rows[work.row]
            self._compute(row, work.num_tokens)
            if not row.num_uncomputed:
                sampled_rows.append(work.row)
                tokens.append(self._sample(row))
        return StepResult(step.step_id, sampled_rows, tokens)

    def _admitted(self, admission: Admission) -> Row:
        uid = admission.params.seed
        assert uid is not None
        num_tokens = len(admission.token_ids)
        return Row(
            uid=uid,
            position=admission.position,
            num_entries=admission.resident_length,
            num_uncomputed=num_tokens - admission.position,
            num_output=num_tokens - admission.prompt_length,
            output_length=self.output_lengths[uid],
            highest_position=max(self._highest_positions.get(uid, 0), admission.position),
        )

    def _compute(self, row: Row, num_tokens: int) -> None:
        if row.position < row.highest_position:
            self.recomputed_tokens += min(num_tokens, row.highest_position - row.position)
        row.position += num_tokens
        row.highest_position = max(row.highest_position, row.position)
        row.num_entries += num_tokens
        row.num_uncomputed -= num_tokens
        self.num_tokens += num_tokens
        self.num_entries += row.num_entries

    def _sample(self, row: Row) -> SampledToken:
        row.num_output += 1
        row.num_uncomputed = 1
        if row.num_output == row.output_length:
            return SampledToken(EOS)
        while len(self._tokens) < row.num_output:
            self._tokens.append(SampledToken(FIRST_TOKEN + len(self._tokens)))
        return self._tokens[row.num_output - 1]
