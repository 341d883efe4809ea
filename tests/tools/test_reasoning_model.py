"""The model that is trained against zipage's own decoder, and its attention over packed rows."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_attention import dense_causal_attention

from tools.reasoning.batches import stack
from tools.reasoning.checkpoint import export, load_weights
from tools.reasoning.encoding import IGNORED, PADDING_DOCUMENT, Document, encode, pack
from tools.reasoning.model import Reasoner, Shape
from tools.reasoning.packed_attention import block_attention, block_mask, dense_attention, dense_mask
from zipage.bundled.tasks.families import FAMILIES
from zipage.models.config import load_model_config
from zipage.models.loading import load_decoder

SMALL = Shape(layers=2, hidden=64, intermediate=96)


def model(seed: int = 0) -> Reasoner:
    """Weights large enough that every part shows in the logits, and of bf16's precision."""
    torch.manual_seed(seed)
    reasoner = Reasoner(SMALL)
    with torch.no_grad():
        for parameter in reasoner.parameters():
            mean = 0.0 if parameter.dim() == 2 else 1.0
            parameter.copy_(torch.normal(mean, 0.2, parameter.shape).bfloat16())
    return reasoner


def documents(*sizes: int) -> list[Document]:
    rng = random.Random(0)
    return [encode(FAMILIES[family](rng, size)) for family, size in zip(FAMILIES, sizes, strict=False)]


def packed_logits(reasoner: Reasoner, row: list[Document], length: int) -> torch.Tensor:
    """[T, vocab] of one packed row."""
    batch = stack([pack(row, length)])
    with torch.no_grad():
        mask = dense_mask(batch.documents)
        return reasoner(batch.token_ids.long(), batch.positions, dense_attention, mask)[0]


def test_the_default_model_is_small_enough_to_ship() -> None:
    parameters = sum(parameter.numel() for parameter in Reasoner(Shape()).parameters())
    assert parameters < 10e6
    assert 2 * parameters < 16 * 2**20


def test_exported_logits_are_those_of_zipages_decoder(tmp_path: Path) -> None:
    reasoner = model()
    export(reasoner, tmp_path)
    (document,) = documents(300)
    token_ids = torch.from_numpy(document.token_ids).long()
    decoder = load_decoder(tmp_path, load_model_config(tmp_path), torch.float32, "cpu")
    with torch.inference_mode():
        length = len(token_ids)
        hidden = decoder(token_ids, torch.arange(length), dense_causal_attention([length]))
        expected = decoder.logits(hidden)
    ours = packed_logits(reasoner, [document], length)
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_exported_weights_can_be_loaded_again(tmp_path: Path) -> None:
    reasoner, other = model(0), model(1)
    export(reasoner, tmp_path)
    load_weights(other, tmp_path)
    assert all(torch.equal(*pair) for pair in zip(reasoner.parameters(), other.parameters(), strict=True))


def test_documents_of_a_row_do_not_see_each_other() -> None:
    reasoner, row = model(), documents(150, 200, 180)
    lengths = [len(document.token_ids) for document in row]
    together = packed_logits(reasoner, row, sum(lengths) + 20)[: sum(lengths)].split(lengths)
    for document, length, logits in zip(row, lengths, together, strict=True):
        torch.testing.assert_close(logits, packed_logits(reasoner, [document], length), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_block_attention_is_dense_attention() -> None:
    # Unequal documents, one of them across a block of 128, and padding.
    rows = [[0] * 100 + [1] * 180 + [PADDING_DOCUMENT] * 104, [0] * 384]
    packed = torch.tensor(rows, dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 384, 16, generator=generator)
    key, value = (torch.randn(2, 2, 384, 16, generator=generator) for _ in range(2))
    expected = dense_attention(query, key, value, dense_mask(packed))
    torch.testing.assert_close(block_attention(query, key, value, block_mask(packed)), expected, rtol=1e-4, atol=1e-5)


def test_only_the_assistants_tokens_are_learned() -> None:
    row = documents(150, 200)
    packed = pack(row, 700)
    first = len(row[0].token_ids)
    for start, document in zip((0, first), row, strict=True):
        targets = packed.targets[start : start + len(document.token_ids)]
        learned = targets[targets != IGNORED]
        assert np.array_equal(learned, document.token_ids[document.prompt_length :])
        assert targets[document.prompt_length - 1] == document.token_ids[document.prompt_length]
    assert packed.positions[first] == 0
    assert (packed.targets[first + len(row[1].token_ids) :] == IGNORED).all()


@pytest.mark.parametrize("length", [10, 100, 170])
def test_what_does_not_fit_into_a_row_is_cut_off(length: int) -> None:
    (document,) = documents(150)
    packed = pack([document, document], length)
    assert np.array_equal(packed.token_ids, document.token_ids[:length])
    assert packed.targets[-1] == IGNORED
    assert (packed.targets != IGNORED).sum() == max(0, length - document.prompt_length)
