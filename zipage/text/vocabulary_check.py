"""Checks of a request that need the size of the model's vocabulary."""

from zipage.errors import InvalidRequestError
from zipage.sampling_params import SamplingParams


def check_against_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Check the token ids that `params` names.

    Args:
        params: the request's sampling options.
        vocab_size: width of the model's logits; ids run from 0 to `vocab_size - 1`.

    Raises:
        InvalidRequestError: an id in `stop_token_ids` or `logit_bias` is outside the vocabulary.
    """
    for field, token_ids in (("stop_token_ids", params.stop_token_ids), ("logit_bias", params.logit_bias)):
        for token_id in token_ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequestError(f"{field}: token id must be in [0, {vocab_size - 1}], not {token_id}", field)
