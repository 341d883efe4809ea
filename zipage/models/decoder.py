"""The decoder of the Llama, Qwen2 and Qwen3 families, which differ in biases and in the norm of queries and keys."""

import torch
import torch.nn.functional as F

from zipage.models.config import ModelConfig
from zipage.models.layers import AttentionFunction, DecoderLayer, RMSNorm, empty_parameter
from zipage.models.rope import rotary_table


class Decoder(torch.nn.Module):
    """Everything of a causal language model but attention itself, which the caller brings.

    Nothing is recorded for gradients; callers run it under `torch.inference_mode()`. `forward` allocates no state, so a
    CUDA graph can capture it where the attention function can be captured.
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
        self.config = config
        self.embedding = empty_parameter((config.vocab_size, config.hidden_size), dtype, device)
        self.layers = torch.nn.ModuleList(DecoderLayer(config, dtype, device) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype, device)
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
        residual = F.embedding(input_ids, self.embedding)
        cosines, sines = F.embedding(positions, self.rotary_table).unsqueeze(1).chunk(2, dim=-1)
        for index, layer in enumerate(self.layers):
            layer(index, residual, cosines, sines, attention)
        return residual

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and output embedding of rows of `forward`'s result: [R, hidden] -> [R, vocab] float32."""
        return F.linear(self.final_norm(hidden), self.output_embedding).float()
