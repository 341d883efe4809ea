"""Shapes of published models, and what one step of them reads and computes."""

from zipage.models.config import ModelConfig
from zipage.models.rope_config import RopeConfig

WEIGHT_BYTES = 2


def _qwen3(
    *, hidden_size: int, intermediate_size: int, num_layers: int, num_query_heads: int, tie_word_embeddings: bool
) -> ModelConfig:
    return ModelConfig(
        family="qwen3",
        vocab_size=151936,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_query_heads=num_query_heads,
        num_kv_heads=8,
        head_dim=128,
        max_model_len=40960,
        rms_norm_eps=1e-6,
        rope=RopeConfig(theta=1e6, scaling=None),
        tie_word_embeddings=tie_word_embeddings,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        qk_norm=True,
        dtype="bfloat16",
        bos_token_id=None,
        eos_token_ids=(151645,),
    )


SHAPES = {
    "qwen3-0.6b": _qwen3(
        hidden_size=1024, intermediate_size=3072, num_layers=28, num_query_heads=16, tie_word_embeddings=True
    ),
    "qwen3-8b": _qwen3(
        hidden_size=4096, intermediate_size=12288, num_layers=36, num_query_heads=32, tie_word_embeddings=False
    ),
}


def multiplied_parameters(model: ModelConfig) -> int:
    """Weights of all matrix products of one step: the layers' projections and the output embedding.

    The input embedding is looked up, a row for each token, which counts for nothing.
    """
    query_size = model.num_query_heads * model.head_dim
    attention = model.hidden_size * (2 * query_size + 2 * model.num_kv_heads * model.head_dim)
    feed_forward = 3 * model.hidden_size * model.intermediate_size
    return model.num_layers * (attention + feed_forward) + model.vocab_size * model.hidden_size


def entry_bytes(model: ModelConfig) -> int:
    """Bytes of keys and values of one token in all layers and KV heads."""
    return model.num_layers * model.num_kv_heads * 2 * model.head_dim * WEIGHT_BYTES
