"""Checks of a request against the vocabulary."""

import subprocess
import sys

import pytest

from zipage.errors import InvalidRequestError
from zipage.sampling_params import SamplingParams
from zipage.text.vocabulary_check import check_against_vocabulary


def test_ids_inside_the_vocabulary_pass():
    check_against_vocabulary(SamplingParams(stop_token_ids=(0, 63), logit_bias={0: 1.0, 63: -1.0}), 64)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("stop_token_ids", SamplingParams(stop_token_ids=(3, 64))),
        ("logit_bias", SamplingParams(logit_bias={3: 1.0, 64: 1.0})),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(field, params):
    with pytest.raises(InvalidRequestError, match=rf"{field}.*\[0, 63\], not 64") as caught:
        check_against_vocabulary(params, 64)
    assert caught.value.field == field


def test_needs_no_torch():
    program = "import sys, zipage.text.vocabulary_check; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
