"""What both clients share: turning arguments into requests, and keeping the answers of unfinished requests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import msgspec

from zipage.errors import EngineError, InvalidRequestError
from zipage.messages import Alive, EngineMessage, GenerationRequest, Output, Refused, Status
from zipage.results import RequestOutput, join_outputs
from zipage.sampling_params import SamplingParams

Conversation = Sequence[Mapping[str, Any]]
Prompt = str | Sequence[int]
Sampling = SamplingParams | Sequence[SamplingParams] | None
OnResult = Callable[[RequestOutput], object]


def split_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """Return the list of prompts, and whether it was one prompt by itself.

    Raises:
        InvalidRequestError: not a string, a list of token ids, or a list of those.
    """
    if isinstance(prompts, str) or (_is_token_ids(prompts) and len(prompts) > 0):
        return [prompts], True
    if not _is_sequence(prompts):
        raise InvalidRequestError("prompts must be a string, a list of token ids, or a list of those", "prompts")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not _is_token_ids(prompt):
            hint = "; conversations go to chat()" if isinstance(prompt, Mapping) or is_conversation(prompt) else ""
            raise InvalidRequestError(f"prompt {number} must be a string or a list of token ids{hint}", "prompts")
    return list(prompts), False


def split_conversations(messages: Conversation | Sequence[Conversation]) -> tuple[list[Conversation], bool]:
    """Return the list of conversations, and whether it was one conversation by itself.

    Raises:
        InvalidRequestError: not a list of messages (mappings) or a list of those.
    """
    if is_conversation(messages):
        return [messages], True
    if not _is_sequence(messages) or not all(map(is_conversation, messages)):
        raise InvalidRequestError(
            "messages must be a list of messages such as {'role': 'user', 'content': '...'}, or a list of such lists",
            "messages",
        )
    return list(messages), False


def is_conversation(value: object) -> TypeGuard[Conversation]:
    """Whether this is a non-empty sequence of mappings."""
    return _is_sequence(value) and len(value) > 0 and all(isinstance(each, Mapping) for each in value)


def params_for(count: int, sampling_params: Sampling) -> list[SamplingParams]:
    """One `SamplingParams` for each of `count` prompts.

    Raises:
        InvalidRequestError: another type, or a list of another length.
    """
    if sampling_params is None:
        return [SamplingParams()] * count
    if isinstance(sampling_params, SamplingParams):
        return [sampling_params] * count
    if not _is_sequence(sampling_params) or not all(isinstance(each, SamplingParams) for each in sampling_params):
        raise InvalidRequestError("sampling_params must be SamplingParams, or a list of them", "sampling_params")
    if len(sampling_params) != count:
        raise InvalidRequestError(
            f"sampling_params must be one for all prompts or one for each of {count}, not {len(sampling_params)}",
            "sampling_params",
        )
    return list(sampling_params)


def make_request(
    request_id: str, prompt: Prompt | Conversation, params: SamplingParams, *, stream: bool = False
) -> GenerationRequest:
    """The message for one prompt: text, token ids or chat messages.

    Raises:
        InvalidRequestError: the prompt is none of these.
    """
    if isinstance(prompt, str):
        return GenerationRequest(request_id=request_id, prompt=prompt, sampling=params, stream=stream)
    if is_conversation(prompt):
        messages = [dict(message) for message in prompt]
        return GenerationRequest(request_id=request_id, messages=messages, sampling=params, stream=stream)
    if not _is_token_ids(prompt):
        raise InvalidRequestError("prompt must be a string, a list of token ids, or a list of chat messages", "prompt")
    return GenerationRequest(request_id=request_id, prompt_token_ids=list(prompt), sampling=params, stream=stream)


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_token_ids(value: object) -> TypeGuard[Sequence[int]]:
    return _is_sequence(value) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)


class PendingRequest:
    """The messages of one request that have arrived, until its last completion has ended."""

    def __init__(self, request_id: str, n: int) -> None:
        self.request_id = request_id
        self.error: InvalidRequestError | None = None
        self._n = n
        self._outputs: list[Output] = []
        self._unfinished = set(range(n))

    @property
    def finished(self) -> bool:
        """Every completion has ended, or the request was refused."""
        return not self._unfinished

    def refuse(self, error: InvalidRequestError) -> None:
        """End the request without completions."""
        self.error = error
        self._unfinished.clear()

    def add(self, output: Output) -> None:
        """Keep a piece of one completion.

        Raises:
            EngineError: there is no such unfinished completion.
        """
        if output.index not in self._unfinished:
            reason = f"request {self.request_id} has no unfinished completion {output.index}"
            raise EngineError(f"malformed answer from the engine: {reason}")
        self._outputs.append(output)
        if output.finish_reason is not None:
            self._unfinished.discard(output.index)

    def take_answer(self, answer: Output | Refused) -> None:
        """Keep what the engine has sent for this request.

        Raises:
            EngineError: there is no such unfinished completion.
        """
        if isinstance(answer, Refused):
            self.refuse(InvalidRequestError(answer.message, answer.field))
        else:
            self.add(answer)

    def take(self) -> list[Output]:
        """The pieces since the last call; a request that is taken from has no `result`."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def result(self) -> RequestOutput:
        """The whole answer of a finished request."""
        if self.error is not None:
            return RequestOutput(self.request_id, [], self.error)
        pieces: list[list[Output]] = [[] for _ in range(self._n)]
        for output in self._outputs:
            pieces[output.index].append(output)
        return RequestOutput(self.request_id, [join_outputs(index, part) for index, part in enumerate(pieces)])


def refused_request(request_id: str, error: InvalidRequestError) -> PendingRequest:
    """A request that has ended before it was sent."""
    pending = PendingRequest(request_id, 0)
    pending.refuse(error)
    return pending


class PendingRequests:
    """The unfinished requests of one client, by request id. It encodes and decodes frames, and owns no socket."""

    def __init__(self) -> None:
        self._requests: dict[str, PendingRequest] = {}
        self._abandoned: dict[str, PendingRequest] = {}
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(EngineMessage)
        self._request_decoder = msgspec.msgpack.Decoder(GenerationRequest)
        self._names = 0

    def __getitem__(self, request_id: str) -> PendingRequest:
        return self._requests[request_id]

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def names(self) -> list[str]:
        """The ids of all requests that have not been forgotten."""
        return list(self._requests)

    def make_name(self) -> str:
        """A request id that this client has not used."""
        self._names += 1
        return f"request-{self._names}"

    def submit(self, requests: Sequence[GenerationRequest]) -> bytes | None:
        """Register requests and return the one `Submit` frame for them, or `None` where nothing is left to send.

        A request that its own types forbid is refused here, so that it cannot spoil the message for the others.

        Raises:
            InvalidRequestError: a request id is in use.
        """
        taken = {*self._requests, *self._abandoned}
        for request in requests:
            if request.request_id in taken:
                message = f"request_id {request.request_id!r} is the name of an unfinished request"
                raise InvalidRequestError(message, "request_id")
            taken.add(request.request_id)
        encoded = [frame for frame in map(self._register, requests) if frame is not None]
        return self._encoder.encode({"type": "Submit", "requests": encoded}) if encoded else None

    def receive(self, frames: Sequence[bytes]) -> Status | PendingRequest | None:
        """Decode one message; keep an answer with its request. Late answers to forgotten requests give `None`.

        Raises:
            EngineError: not a message of the protocol.
        """
        if len(frames) != 1:
            raise EngineError(f"malformed answer from the engine: {len(frames)} frames instead of one")
        try:
            message = self._decoder.decode(frames[0])
        except (ValueError, RecursionError) as error:
            raise EngineError(f"malformed answer from the engine: {error}") from None
        if isinstance(message, Status):
            return message
        if isinstance(message, Alive):
            return None
        if message.request_id in self._abandoned:
            self._take_late(message)
            return None
        pending = self._requests.get(message.request_id)
        if pending is not None:
            pending.take_answer(message)
        return pending

    def forget(self, request_id: str) -> None:
        """Drop a request; whatever still arrives for it is ignored. Its id is free again once its end has arrived."""
        pending = self._requests.pop(request_id, None)
        if pending is not None and not pending.finished:
            self._abandoned[request_id] = pending

    def _take_late(self, answer: Output | Refused) -> None:
        pending = self._abandoned[answer.request_id]
        pending.take_answer(answer)
        if pending.finished:
            del self._abandoned[answer.request_id]

    def _register(self, request: GenerationRequest) -> msgspec.Raw | None:
        try:
            frame = self._encoder.encode(request)
            pending = PendingRequest(request.request_id, self._request_decoder.decode(frame).sampling.n)
        except InvalidRequestError as error:
            pending = refused_request(request.request_id, error)
        except msgspec.ValidationError as error:
            pending = refused_request(request.request_id, InvalidRequestError(f"request: {error}"))
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            pending = refused_request(request.request_id, InvalidRequestError(f"request cannot be sent: {error}"))
        self._requests[request.request_id] = pending
        return None if pending.finished else msgspec.Raw(frame)


class Intake:
    """Takes requests from an iterable as there is room for their completions."""

    def __init__(self, requests: Iterable[GenerationRequest], window: int | None) -> None:
        """`window` completions may be unfinished at a time, or any number."""
        self._requests = iter(requests)
        self._window = window
        self._following: GenerationRequest | None = None
        self._unfinished: dict[str, int] = {}
        self._num_unfinished = 0

    def take(self) -> list[GenerationRequest]:
        """The next requests, in order; where nothing is unfinished, at least one if any is left."""
        batch = []
        while self._window is None or self._num_unfinished < self._window:
            request = self._following or next(self._requests, None)
            self._following = None
            if request is None:
                break
            fits = self._window is None or self._num_unfinished + request.sampling.n <= self._window
            if self._num_unfinished and not fits:
                self._following = request
                break
            batch.append(request)
            self._unfinished[request.request_id] = request.sampling.n
            self._num_unfinished += request.sampling.n
        return batch

    def note_end(self, request_id: str) -> None:
        """A request has finished."""
        self._num_unfinished -= self._unfinished.pop(request_id)


def make_requests(
    pending: PendingRequests, prompts: Sequence[Prompt | Conversation], sampling_params: Sampling
) -> list[GenerationRequest]:
    """Requests with names of their own, one for each prompt.

    Raises:
        InvalidRequestError: as for `params_for` and `make_request`.
    """
    pairs = zip(prompts, params_for(len(prompts), sampling_params), strict=True)
    return [make_request(pending.make_name(), prompt, params) for prompt, params in pairs]


def in_order(
    requests: Sequence[GenerationRequest], results: Mapping[str, RequestOutput], alone: bool
) -> list[RequestOutput]:
    """Results in the order of their requests.

    Raises:
        InvalidRequestError: `alone` (the caller passed one prompt by itself), and it was refused.
    """
    ordered = [results[request.request_id] for request in requests]
    if alone and ordered[0].error is not None:
        raise ordered[0].error
    return ordered
