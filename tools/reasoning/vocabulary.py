"""The characters and special tokens that the small model knows: one character is one token."""

import string

from zipage.bundled.tasks.example import END_THINK, THINK

PAD, USER, ASSISTANT, END = "<pad>", "<|user|>", "<|assistant|>", "<|end|>"

SPECIAL_TOKENS = (PAD, USER, ASSISTANT, END)
"""Left out of a text where special tokens are skipped; token ids 0 to 3."""

VISIBLE_TOKENS = (THINK, END_THINK)
"""Single tokens that a reader sees as text."""

CHARACTERS = "\n " + string.digits + string.ascii_letters + "+-*/=<>()[]:;,.?!#%&'|_"

TOKENS = (*SPECIAL_TOKENS, *VISIBLE_TOKENS, *CHARACTERS)
"""Every token's text; its place is its id."""

TOKEN_IDS = {text: token_id for token_id, text in enumerate(TOKENS)}

VOCAB_SIZE = 96
"""Rows of the model's embedding: `TOKENS`, and a few that nothing uses."""
