"""How much memory the largest step of an engine needs on a GPU, found by running it."""

import torch

from zipage.config import EngineConfig
from zipage.engine_messages import PoolGeometry
from zipage.execution.kernel_attention import Chunks, KernelAttention, KernelBatch
from zipage.execution.pool import KVPool, allocate_on_device
from zipage.kernels.decode_attention import decode_workspace
from zipage.kernels.sampling import sample_tokens
from zipage.models.decoder import Decoder


def working_bytes(decoder: Decoder, config: EngineConfig) -> int:
    """Bytes for steps that run eagerly, and as many again for graphs, whose memory is their own."""
    device = decoder.embedding.device
    pool = _pool_of_a_step(decoder, config)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run_largest_step(decoder, config, pool)
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del pool
    torch.cuda.empty_cache()
    return 2 * peak


@torch.inference_mode()
def run_largest_step(decoder: Decoder, config: EngineConfig, pool: KVPool) -> torch.Tensor:
    """A prompt of `max_num_batched_tokens` tokens, and sampling for `max_num_seqs` rows, at most as many as tokens.

    Args:
        decoder: with any weights.
        config: how large steps are.
        pool: has room for the prompt.

    Returns:
        The sampled tokens.
    """
    count, device, geometry = config.max_num_batched_tokens, pool.device, pool.geometry
    tokens = torch.arange(count, device=device)
    nothing = tokens[:0]
    chunks = Chunks(
        starts=torch.tensor([0, count], device=device),
        tables=torch.arange(geometry.num_blocks, device=device)[None],
        lengths=torch.tensor([count], device=device),
        observe_last=torch.tensor([0], device=device),
    )
    batch = KernelBatch(
        positions=tokens % decoder.config.max_model_len,
        slots=tokens,
        decode_tables=chunks.tables[:0],
        decode_lengths=nothing,
        chunks=chunks,
        query_rows=torch.full_like(tokens, -1),
    )
    workspace = decode_workspace(geometry.num_query_heads, geometry.num_kv_heads, geometry.head_dim, device)
    attention = KernelAttention(pool, decoder.rotary_table, workspace, batch)
    hidden = decoder.run_layers(torch.zeros_like(tokens), attention)[: config.max_num_seqs]
    rows = len(hidden)
    ones = torch.ones(rows, dtype=torch.float64, device=device)
    numbers = torch.ones(rows, dtype=torch.int64, device=device)
    logits = decoder.output_logits(hidden)
    return sample_tokens(logits, ones.float(), numbers * logits.shape[1], ones, ones * 0, numbers, numbers)


def _pool_of_a_step(decoder: Decoder, config: EngineConfig) -> KVPool:
    model = decoder.config
    geometry = PoolGeometry(
        num_layers=model.num_layers,
        num_blocks=-(-config.max_num_batched_tokens // config.block_size),
        block_size=config.block_size,
        num_query_heads=model.num_query_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        dtype=str(decoder.embedding.dtype).removeprefix("torch."),
    )
    return allocate_on_device(geometry, decoder.embedding.device)
