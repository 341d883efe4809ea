"""What a request needs next: pure functions of a request and the engine's limits."""

from zipage.scheduling.limits import SchedulerLimits
from zipage.scheduling.request import NEVER, Request, RequestState


def next_compression(request: Request, resident_length: int, limits: SchedulerLimits) -> int:
    """Resident length at which a request is compressed next whose interval begins with `resident_length` entries.

    Once its prompt is computed, that is when the last block is full and it holds `N_max` blocks or more. A prompt that
    does not fit into the budget and one chunk is compressed whenever these are full. So the entries that survive depend
    on the request alone, never on how steps have cut its prompt.
    """
    if not request.max_blocks:
        return NEVER
    full = request.max_blocks * limits.block_size
    with_chunk = full + _chunk_blocks(request, limits) * limits.block_size
    prompt_end = resident_length + max(0, request.prefill_length - request.position)
    prompt_blocks = limits.blocks_for(prompt_end) * limits.block_size
    due = with_chunk if prompt_end > with_chunk else max(full, prompt_blocks)
    # The last token is never computed, so nothing follows that could need the blocks.
    entries_at_end = resident_length + request.max_length - 1 - request.position
    return due if due < entries_at_end else NEVER


def observation_start(request: Request, resident_length: int, limits: SchedulerLimits) -> int:
    """Position from which on attention is accumulated in an interval that begins with `resident_length` entries.

    It is that of the last `window` queries of the prompt, or of the part that is computed before the next compression.
    """
    prompt_end = request.prefill_length
    if request.next_compression != NEVER:
        prompt_end = min(prompt_end, request.position + request.next_compression - resident_length)
    return max(request.position, prompt_end - limits.scoring.window)


def peak_blocks(request: Request, limits: SchedulerLimits) -> int:
    """Most blocks that the request needs from here on, if it is compressed whenever that is due."""
    if request.next_compression == NEVER:
        return limits.blocks_for(request.resident_length + request.max_length - 1 - request.position)
    return limits.blocks_for(request.next_compression)


def allowed_tokens(request: Request, limits: SchedulerLimits) -> int:
    """Tokens that may be planned before the request has to be compressed, or to get a query slot."""
    if request.job is not None:
        # A shadow job: the next compression is due when the survivors and what follows them fill the budget.
        survivors = (request.max_blocks - 1) * limits.block_size
        return request.next_compression - survivors - (request.resident_length - request.job.num_entries)
    if request.next_compression == NEVER:
        return NEVER
    if request.query_buffer < 0:
        return max(0, request.next_compression - recorded_tokens(limits) - request.resident_length)
    if not is_binding(request, limits):
        return NEVER
    return max(0, request.next_compression - request.resident_length)


def next_blocks(request: Request, limits: SchedulerLimits) -> int:
    """Blocks that a running request takes for its known tokens, or for a block of them, before it is compressed."""
    if request.is_paused or request.state is RequestState.COMPRESSING:
        return 0
    tokens = min(max(request.num_uncomputed, limits.block_size), request.max_length - 1 - request.position)
    tokens = min(tokens, allowed_tokens(request, limits))
    return max(0, limits.blocks_for(request.resident_length + tokens) - len(request.block_table))


def is_binding(request: Request, limits: SchedulerLimits) -> bool:
    """Whether a compression that is due has to be done at once, or can wait until blocks are short.

    Where attention is accumulated in a prompt, only that of the queries just before the compression is.
    """
    if limits.compress == "always":
        return True
    return limits.accumulates and request.position < request.prefill_length


def recorded_tokens(limits: SchedulerLimits) -> int:
    """Tokens before a request's first compression that it must not compute without a query slot."""
    if limits.accumulates:
        return 0
    return limits.scoring.window if limits.scoring.observe == "last" else NEVER


def reusable_tokens(request: Request, limits: SchedulerLimits) -> int:
    """Most leading tokens whose entries a waiting request may take from others instead of computing them.

    The last token is computed in any case, because it gives logits, and so are those whose queries its first
    compression observes.
    """
    if not limits.prefix_caching:
        return 0
    reusable = len(request.token_ids) - 1
    if request.next_compression != NEVER:
        reusable = min(reusable, request.next_compression - recorded_tokens(limits))
    return max(0, reusable)


def _chunk_blocks(request: Request, limits: SchedulerLimits) -> int:
    """Blocks beyond its budget that a prompt may fill before it is compressed."""
    return max(0, min(limits.max_num_batched_tokens // limits.block_size, limits.num_blocks - request.max_blocks))
