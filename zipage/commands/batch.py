"""The prompts of a JSONL file, at most a window of them in the engine at a time."""

from collections.abc import Iterator, Set
from pathlib import Path

from zipage.commands.jsonl import InputFile, LineId
from zipage.commands.jsonl_results import finished_ids, open_output, write_result
from zipage.commands.session import Session
from zipage.messages import GenerationRequest


def run_file(session: Session, source: InputFile, ids: Set[LineId], output: Path | None) -> str | None:
    """Write a result for every line of `source` that has none yet; returns what went wrong, if anything.

    `ids` are all of the file's; without `output` the results go to standard output.

    Raises:
        InvalidRequestError: the output file holds something else.
        EngineError: the engine has ended; what was finished is in the output.
        OSError: the output cannot be written.
    """
    finished = finished_ids(output) if output is not None else set()
    total = len(ids - finished)
    if total < len(ids):
        session.note(f"{len(ids) - total} of {len(ids)} lines have a result in {output} already")
    names: dict[str, LineId] = {}
    written = failed = 0
    try:
        with open_output(output) as file, session.working(total) as bar:
            requests = _requests(source, finished, names)
            for result in session.client.completed(requests, session.window):
                error = write_result(file, names.pop(result.request_id), result)
                written += 1
                failed += error is not None
                session.summary.add(result.completions)
                bar.advance()
    finally:
        if written < total and output is not None:
            session.note(f"{written} of {total} lines were done; the same command goes on from there")
    return f"{failed} of {total} lines have an error instead of a result" if failed else None


def _requests(source: InputFile, finished: Set[LineId], names: dict[str, LineId]) -> Iterator[GenerationRequest]:
    for line in source:
        if line.id not in finished:
            names[line.request.request_id] = line.id
            yield line.request
