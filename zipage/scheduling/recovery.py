"""What becomes of requests and jobs when a worker has died and another one has come in its place.

The tokens of every request are the scheduler's own, so nothing that a client was sent is lost or repeated.
"""

from collections.abc import Collection

from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.lives import Lives
from zipage.scheduling.request import JobKind, OpenJob, Request

MAX_LOST_STEPS = 3
MAX_JOB_SENDS = 3


def move_to_new_pool(lives: Lives, limits: SchedulerLimits) -> tuple[Lives, list[Request]]:
    """Queue every unfinished request for an empty pool, each in its old place in line.

    What has ended is gone with the old pool. What was swapped is computed again too, because the new pool comes with a
    host memory of its own size.

    Returns:
        Where the requests are now, and those of them that cannot go on: what they have does not fit into the new pool,
        or they were in a step of the decode worker more than `MAX_LOST_STEPS` times when it died, and may be the cause.
    """
    moved, hopeless = Lives(limits, lives.counters, lives.lengths, lives.on_stall), []
    moved.now = lives.now
    for request in lives.running:
        request.preemptions += 1
        request.lost_steps += request.in_flight > 0
        lives.counters.preemptions += 1
    for request in lives.unfinished.values():
        message = request.to_message()
        lives.end_stall(request)
        request.lose_pool()
        request.max_length, request.max_blocks = limits.max_length(message), limits.max_blocks(message.params)
        moved.queue(request)
        fits = limits.refusal(message) is None and len(request.token_ids) < request.max_length
        if not fits or request.lost_steps > MAX_LOST_STEPS:
            hopeless.append(request)
    return moved, hopeless


def take_back_jobs(lives: Lives, unfinished: Collection[int]) -> list[int]:
    """Have jobs sent again that a dead compression worker had.

    All of them can be run again but for stall jobs that it may have begun: one that was not begun has written nothing,
    and the others read blocks, or host memory, that they do not write.

    Args:
        lives: the requests.
        unfinished: requests whose stall job may have been begun.

    Returns:
        Requests whose job is not sent again: it was begun, or it was sent to `MAX_JOB_SENDS` workers, of which it may
        have killed every one.
    """
    failed = []
    for request in list(lives.at_work.values()):
        job = request.job
        if job is None:
            raise RuntimeError(f"request {request.uid} has no job that could be sent again")
        if request.is_ended or not _has_failed(job, request.uid in unfinished):
            lives.send_job_again(request, job)
        else:
            failed.append(request.uid)
    return failed


def _has_failed(job: OpenJob, is_unfinished: bool) -> bool:
    return job.num_sends >= MAX_JOB_SENDS or (job.kind is JobKind.STALL and is_unfinished)
