"""The decoder of the Llama, Qwen2 and Qwen3 families, which differ in biases and in the norm of queries and keys."""

import torch
import torch.nn.functional as F

from zipage.models.config import ModelConfig
from zipage.models.layers import (
    AttentionFunction,
    DecoderLayer,
    ProjectedAttention,
    RMSNorm,
    RotaryAttention,
    empty_parameter,
)
from zipage.models.operations import operations_for
from zipage.models.rope import rotary_table


class Decoder(torch.nn.Module):
    """Everything of a causal language model but attention itself, which the caller brings.

    Nothing is recorded for gradients; callers run it under `torch.inference_mode()`. No state is allocated on the way,
    so a CUDA graph can capture it where the attention can be captured.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> None:
        """Allocate the parameters without initialising them (`loading.load_decoder` fills them).

        Args:
            config: shape of the model; positions must stay below its `max_model_len`, which is also the size of the
                RoPE table, so an engine that allows less may pass a config with a smaller one.
            dtype: of parameters, RoPE table and activations.
            device: where all of them live.
        """
        super().__init__()
        device = torch.device(device)
        operations = operations_for(device)
        self.config = config
        self.embedding = empty_parameter((config.vocab_size, config.hidden_size), dtype, device)
        self.layers = torch.nn.ModuleList(
            DecoderLayer(config, operations, dtype, device) for _ in range(config.num_layers)
        )
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, operations, dtype, device)
        # One Parameter object under both names where the embeddings are tied.
        self.output_embedding = (
            self.embedding
            if config.tie_word_embeddings
            else empty_parameter((config.vocab_size, config.hidden_size), dtype, device)
        )
        self.rotary_table: torch.Tensor
        table = rotary_table(config.rope, config.head_dim, config.max_model_len, dtype, device)
        self.register_buffer("rotary_table", table, persistent=False)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, attention: AttentionFunction) -> torch.Tensor:
        """Run the layers over a flat batch; which tokens see each other is the business of `attention`.

        Args:
            input_ids: [T] int64.
            positions: [T] int64, what RoPE sees.
            attention: called once for each layer, in order.

        Returns:
            [T, hidden] in the model's dtype: the residual stream before the final norm, for `logits`.
        """
        cosines, sines = F.embedding(positions, self.rotary_table).unsqueeze(1).chunk(2, dim=-1)
        heads = self.config.num_query_heads, self.config.num_kv_heads
        return self.run_layers(input_ids, RotaryAttention(cosines, sines, *heads, attention))

    def run_layers(self, input_ids: torch.Tensor, attention: ProjectedAttention) -> torch.Tensor:
        """`forward` with an attention that begins at the projections, and knows the positions."""
        residual = F.embedding(input_ids, self.embedding)
        for index, layer in enumerate(self.layers):
            layer(index, residual, attention)
        return residual

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and output embedding of rows of `forward`'s result: [R, hidden] -> [R, vocab] float32."""
        return self.output_logits(hidden).float()

    def output_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`logits` in the model's dtype."""
        return F.linear(self.final_norm(hidden), self.output_embedding)
