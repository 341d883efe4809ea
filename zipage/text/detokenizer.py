"""Output tokens to text, one token at a time."""

import codecs
from collections.abc import Sequence

from zipage.text.tokenizer import TextTokenizer

REPLACEMENT = "\ufffd"
# A UTF-8 character spans at most four tokens, of which up to three can be incomplete at the end of a text.
CONTEXT_TOKENS = 4


class IncrementalDetokenizer:
    """Turns the output tokens of one completion into text that never changes once it is returned.

    The texts of all `push` calls and `flush` make up what decoding prompt and output together adds to the prompt's
    text. Two things are left to know:

    * Where the prompt ends inside a character that the output completes, the character belongs to the output.
    * Byte-fallback tokens (`<0xE2>`) are put together character by character. Whole-sequence decoders replace every
      byte of a run of such tokens by U+FFFD if the run is not valid UTF-8 as a whole; here only what is invalid is
      replaced, since the rest has been returned before the run ends.

    Tokens are decoded together with a few tokens before them (`CONTEXT_TOKENS` to twice as many), so that spaces at
    word starts are as in the whole text; the cost per token does not depend on the length of the output.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._byte_decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # The last token of a run of byte tokens; it joins the window when the run is over.
        self._last_byte_token: int | None = None
        self._window: list[int] = []
        self._returned = 0
        self._start_from(prompt_ids)
        self._prompt_is_unfinished = bool(self._unreturned_tail() or self._byte_decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        """Take the next output token; returns the text, perhaps empty, that has become final."""
        if not self._tokenizer.has_text(token_id, self._skip_special_tokens):
            return ""
        return self._without_prompt_tail(self._advance(token_id))

    def flush(self) -> str:
        """The rest of the text, with U+FFFD for an incomplete character. Nothing may be pushed afterwards."""
        return self._without_prompt_tail(self._end_byte_run() + self._unreturned_tail())

    def _start_from(self, prompt_ids: Sequence[int]) -> None:
        tail: list[int] = []
        for token_id in reversed(prompt_ids):
            if self._tokenizer.has_text(token_id, self._skip_special_tokens):
                tail.append(token_id)
            if len(tail) == 2 * CONTEXT_TOKENS:
                break
        for token_id in reversed(tail):
            self._advance(token_id)

    def _advance(self, token_id: int) -> str:
        byte = self._tokenizer.byte_values.get(token_id)
        if byte is not None:
            self._last_byte_token = token_id
            return self._byte_decoder.decode(bytes((byte,)))
        text = self._end_byte_run()
        self._window.append(token_id)
        return text + self._take_settled()

    def _end_byte_run(self) -> str:
        if self._last_byte_token is None:
            return ""
        text = self._byte_decoder.decode(b"", final=True)
        self._window.append(self._last_byte_token)
        self._last_byte_token = None
        self._returned = len(self._tokenizer.decode_all(self._window))
        return text

    def _take_settled(self) -> str:
        text = self._tokenizer.decode_all(self._window)
        settled = self._settled_length(text)
        new_text = text[self._returned : settled]
        self._returned = settled
        if len(self._window) > 2 * CONTEXT_TOKENS:
            del self._window[:-CONTEXT_TOKENS]
            self._returned = self._settled_length(self._tokenizer.decode_all(self._window))
        return new_text

    def _settled_length(self, text: str) -> int:
        # The bytes of an incomplete character decode to one U+FFFD. Byte-fallback tokens do not get here.
        if self._tokenizer.byte_values or not text.endswith(REPLACEMENT):
            return len(text)
        return len(text) - 1

    def _unreturned_tail(self) -> str:
        return self._tokenizer.decode_all(self._window)[self._returned :] if self._window else ""

    def _without_prompt_tail(self, text: str) -> str:
        if not self._prompt_is_unfinished or not text:
            return text
        # Unless the output has completed it, the incomplete character is the prompt's.
        self._prompt_is_unfinished = False
        return text.removeprefix(REPLACEMENT)
