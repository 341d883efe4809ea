"""The step that is being planned, and those that have left and not returned."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from zipage.engine_messages import Admission, RecordingUpdate, RowWork, Step, TableUpdate
from zipage.scheduling.request import JobKind, Request


@dataclass(frozen=True)
class PlannedStep:
    """A step that has not returned, and the requests that it touches."""

    step_id: int
    requests: list[Request]


@dataclass
class StepPlan:
    """What the next step will carry; rows are released in it before any is given out again."""

    released_rows: list[int] = field(default_factory=list)
    admissions: list[Admission] = field(default_factory=list)
    table_updates: dict[int, TableUpdate] = field(default_factory=dict)
    recording_updates: dict[int, RecordingUpdate] = field(default_factory=dict)
    work: list[RowWork] = field(default_factory=list)
    planned: list[Request] = field(default_factory=list)
    # The highest class of which a request has found no blocks for its next tokens.
    short_class: int | None = None
    # Blocks that shadow jobs hold, and those that further ones may take from others; None where that is not known yet.
    shadow_blocks: int = 0
    unneeded_blocks: int | None = None

    def count_shadow_blocks(self, running: Iterable[Request]) -> None:
        """Count the blocks that shadow jobs hold already; what others need is to be counted again."""
        jobs = (request.job for request in running)
        self.shadow_blocks = sum(len(job.next_table) for job in jobs if job is not None and job.kind is JobKind.SHADOW)
        self.unneeded_blocks = None

    def note_short(self, request: Request) -> None:
        """Note that a request lacks blocks, so that no other of its class or a lower one takes them."""
        rank = request.rank[0]
        self.short_class = rank if self.short_class is None else min(self.short_class, rank)

    def lets_in(self, request: Request) -> bool:
        """Whether nobody of its class or a higher one lacks blocks."""
        return self.short_class is None or request.rank[0] < self.short_class

    def admit(self, request: Request) -> None:
        """Tell the decode worker of a request that has been given a row, with what it holds and has computed."""
        self.admissions.append(
            Admission(
                row=request.row,
                token_ids=list(request.token_ids),
                prompt_length=request.prompt_length,
                params=request.params,
                eos_token_ids=request.eos_token_ids,
                block_table=list(request.block_table),
                position=request.position,
                resident_length=request.resident_length,
            )
        )

    def update_recording(self, request: Request) -> None:
        """Record the request's queries from here on as its interval and its query buffer say."""
        self.recording_updates[request.row] = RecordingUpdate(
            request.row, request.query_buffer, request.interval_start, request.observe_from
        )

    def update_table(self, request: Request) -> None:
        """Replace the decode worker's block table of the request."""
        self.table_updates[request.row] = TableUpdate(request.row, list(request.block_table), request.resident_length)

    def release_row(self, row: int) -> None:
        """Take back a row; one whose admission has not been sent is unknown to the decode worker."""
        admissions = [admission for admission in self.admissions if admission.row != row]
        if len(admissions) == len(self.admissions):
            self.released_rows.append(row)
        self.admissions = admissions
        self.table_updates.pop(row, None)
        self.recording_updates.pop(row, None)

    def build(self, step_id: int) -> Step:
        """The message; what it carries is valid from this step on."""
        return Step(
            step_id,
            self.released_rows,
            self.admissions,
            list(self.table_updates.values()),
            list(self.recording_updates.values()),
            self.work,
        )
