"""The text side of one completion: from the scheduler's tokens to the client's outputs."""

import msgspec

from zipage.engine_messages import SampledToken, TokenOutput
from zipage.messages import GenerationRequest, Output, PositionLogprobs, TokenLogprob
from zipage.text.detokenizer import IncrementalDetokenizer
from zipage.text.stop_strings import StopStrings
from zipage.text.tokenizer import TextTokenizer


class Completion:
    """Collects text, tokens and log-probabilities that the client has not been sent.

    A completion that meets a stop string takes no more tokens, but its last output waits for the scheduler's, which
    brings the metrics.

    Attributes:
        stop_string: the stop string that was found, else `None`.
    """

    def __init__(self, request: GenerationRequest, index: int, prompt_ids: list[int], tokenizer: TextTokenizer) -> None:
        self._request_id = request.request_id
        self._index = index
        self._stream = request.stream
        self._params = request.sampling
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, request.sampling.skip_special_tokens)
        self._stop_strings = StopStrings(request.sampling.stop, request.sampling.include_stop)
        self._num_tokens = 0
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[PositionLogprobs] = []
        self.stop_string: str | None = None

    def advance(self, output: TokenOutput) -> Output | None:
        """Take the result of one step.

        Returns:
            What the client is to be sent: with `stream` something for each step, else only the last output. The last
            one answers the scheduler's last one.
        """
        if self.stop_string is None:
            self._take(output)
        if output.finish_reason is not None:
            return self._last_output(output)
        if self._stream and self.stop_string is None:
            return self._drain()
        return None

    def _take(self, output: TokenOutput) -> None:
        text = ""
        if output.token is not None:
            self._record(output.token)
            # A completion that the scheduler ends with `stop` ends with its stop token.
            if output.finish_reason != "stop" or self._params.include_stop:
                text = self._detokenizer.push(output.token.token_id)
        if output.finish_reason is not None:
            text += self._detokenizer.flush()
        may_match = self._num_tokens >= self._params.min_tokens
        final_text, self.stop_string = self._stop_strings.push(text, may_match)
        self._text.append(final_text)
        if output.finish_reason is not None:
            self._text.append(self._stop_strings.flush())

    def _record(self, token: SampledToken) -> None:
        self._num_tokens += 1
        self._token_ids.append(token.token_id)
        if token.logprob is not None:
            sampled = self._token_logprob(token.token_id, token.logprob)
            top = [self._token_logprob(token_id, logprob) for token_id, logprob in token.top or []]
            self._logprobs.append(PositionLogprobs(sampled, top))

    def _token_logprob(self, token_id: int, logprob: float) -> TokenLogprob:
        return TokenLogprob(token_id, self._tokenizer.piece(token_id), logprob)

    def _last_output(self, output: TokenOutput) -> Output:
        last = msgspec.structs.replace(self._drain(), finish_reason=output.finish_reason, metrics=output.metrics)
        if self.stop_string is None:
            return msgspec.structs.replace(last, stop_reason=output.stop_reason)
        return msgspec.structs.replace(last, finish_reason="stop", stop_reason=self.stop_string)

    def _drain(self) -> Output:
        output = Output(
            request_id=self._request_id,
            index=self._index,
            text="".join(self._text),
            token_ids=self._token_ids,
            logprobs=self._logprobs or None,
        )
        self._text, self._token_ids, self._logprobs = [], [], []
        return output
