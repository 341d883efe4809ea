"""Preemption of compressed requests: their KV goes to host memory and comes back through the compression worker."""

from zipage.engine_messages import SwapIn, SwapOut
from zipage.scheduling.holdings import Holdings
from zipage.scheduling.request import HostPlace, JobKind, OpenJob, Request, RequestState
from zipage.scheduling.step_plan import StepPlan


def begin_swap_out(request: Request) -> None:
    """Copy the KV of a request that no step touches to its host place; until then it keeps its blocks and buffer."""
    place = _host_place(request)
    request.move_to(RequestState.SWAPPED)
    message = SwapOut(request.uid, list(request.block_table), request.query_buffer, place.blocks, place.slot)
    request.job = OpenJob(JobKind.SWAP_OUT, message, request.resident_length, [], request.steps_planned)


def begin_swap_in(request: Request, holdings: Holdings, step: StepPlan) -> None:
    """Give a swapped request what it needs to run, and copy its KV back; no step is planned for it until then."""
    place = _host_place(request)
    (request.row,) = holdings.rows.take(1)
    holdings.guarantee(request)
    holdings.extend(request, len(place.blocks))
    message = SwapIn(request.uid, list(request.block_table), request.query_buffer, place.blocks, place.slot)
    request.job = OpenJob(JobKind.SWAP_IN, message, request.resident_length, [], request.steps_planned)
    step.admit(request)
    step.update_recording(request)


def _host_place(request: Request) -> HostPlace:
    if request.host_place is None:
        raise RuntimeError(f"request {request.uid} has no place in host memory")
    return request.host_place
