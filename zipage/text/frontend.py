"""What the tokenizer process does with each message: no sockets, no clock."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from zipage.engine_messages import (
    AbortTokens,
    RefusedTokens,
    SchedulerMessage,
    SubmitTokens,
    TokenizerMessage,
    TokenOutput,
    TokenRequest,
)
from zipage.errors import InvalidRequestError
from zipage.messages import Abort, ClientMessage, EngineMessage, GenerationRequest, Refused, Status, StatusQuery, Submit
from zipage.models.config import GenerationDefaults
from zipage.text.completion import Completion
from zipage.text.defaults import resolve_params
from zipage.text.prompts import prompt_tokens
from zipage.text.tokenizer import TextTokenizer
from zipage.text.vocabulary_check import check_against_vocabulary


@dataclass(frozen=True, slots=True)
class ModelText:
    """What the frontend knows of the model.

    Attributes:
        tokenizer: the model's.
        vocab_size: width of the model's embedding and logits.
        eos_token_ids: tokens that end a completion.
        defaults: sampling fields of generation_config.json.
    """

    tokenizer: TextTokenizer
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    defaults: GenerationDefaults


@dataclass(slots=True)
class Outbox:
    """What is to be sent, in this order for each receiver."""

    to_clients: list[tuple[bytes, EngineMessage]] = field(default_factory=list)
    to_scheduler: list[TokenizerMessage] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Request:
    """An unfinished request; `uids` are its unfinished completions.

    A muted request's client has gone or has been sent `Refused`: the client's state no longer knows it, it is sent
    nothing more, and it only waits for the scheduler to end its completions.
    """

    client: bytes
    request_id: str
    uids: set[int] = field(default_factory=set)
    muted: bool = False


@dataclass(slots=True, eq=False)
class _Unfinished:
    """A completion that the scheduler has not ended."""

    request: _Request
    completion: Completion
    abort_sent: bool = False


class TextFrontend:
    """State machine of the tokenizer process: every method takes one message and returns what to send.

    A completion lives here from its `SubmitTokens` until the scheduler's last `TokenOutput` for it, or its
    `RefusedTokens`. Exactly one of these comes, whatever aborts have crossed it on the way, and only then is the
    client sent the last `Output`. So every completion of an accepted request ends exactly once.
    """

    def __init__(self, model: ModelText, engine_seed: int) -> None:
        self._model = model
        self._engine_seed = engine_seed
        self._uids = itertools.count()
        self._query_ids = itertools.count()
        self._requests: dict[tuple[bytes, str], _Request] = {}
        self._unfinished: dict[int, _Unfinished] = {}
        self._queries: dict[int, tuple[bytes, int]] = {}

    def on_client(self, client: bytes, message: ClientMessage) -> Outbox:
        """Take a message of the client whose ZeroMQ routing id is `client`."""
        match message:
            case Submit(requests):
                return self._submit(client, requests)
            case Abort(request_ids):
                keys = ((client, request_id) for request_id in request_ids)
                return Outbox(to_scheduler=self._abort(self._requests[key] for key in keys if key in self._requests))
            case StatusQuery(query_id):
                internal_id = next(self._query_ids)
                self._queries[internal_id] = client, query_id
                return Outbox(to_scheduler=[StatusQuery(internal_id)])

    def on_scheduler(self, message: SchedulerMessage) -> Outbox:
        """Take a message of the scheduler."""
        match message:
            case RefusedTokens(uid, reason, field_name):
                return self._refused_tokens(uid, reason, field_name)
            case Status():
                return self._status(message)
            case _:
                return self._token_outputs(message.outputs)

    def waiting_clients(self) -> set[bytes]:
        """Clients with unfinished requests."""
        return {request.client for request in self._requests.values()}

    def client_gone(self, client: bytes) -> Outbox:
        """End everything that `client` has asked for; it is sent nothing more."""
        requests = [request for request in self._requests.values() if request.client == client]
        self._queries = {key: query for key, query in self._queries.items() if query[0] != client}
        for request in requests:
            self._mute(request)
        return Outbox(to_scheduler=self._abort(requests))

    def _submit(self, client: bytes, requests: list[GenerationRequest]) -> Outbox:
        outbox = Outbox()
        accepted: list[TokenRequest] = []
        for request in requests:
            try:
                accepted += self._accept(client, request)
            except InvalidRequestError as error:
                outbox.to_clients.append((client, Refused(request.request_id, str(error), error.field)))
        if accepted:
            outbox.to_scheduler.append(SubmitTokens(accepted))
        return outbox

    def _accept(self, client: bytes, generation: GenerationRequest) -> list[TokenRequest]:
        key = client, generation.request_id
        if key in self._requests:
            raise InvalidRequestError(
                f"request_id {generation.request_id!r} belongs to an unfinished request", "request_id"
            )
        check_against_vocabulary(generation.sampling, self._model.vocab_size)
        prompt_ids = prompt_tokens(generation, self._model.tokenizer, self._model.vocab_size)
        request = self._requests[key] = _Request(*key)
        return [self._expand(request, generation, index, prompt_ids) for index in range(generation.sampling.n)]

    def _expand(
        self, request: _Request, generation: GenerationRequest, index: int, prompt_ids: list[int]
    ) -> TokenRequest:
        uid = next(self._uids)
        request.uids.add(uid)
        completion = Completion(generation, index, prompt_ids, self._model.tokenizer)
        self._unfinished[uid] = _Unfinished(request, completion)
        params = resolve_params(generation.sampling, self._model.defaults, self._engine_seed, uid, index)
        return TokenRequest(uid, prompt_ids, params, self._model.eos_token_ids)

    def _token_outputs(self, outputs: list[TokenOutput]) -> Outbox:
        outbox = Outbox()
        stopped: list[int] = []
        for output in outputs:
            unfinished = self._unfinished.get(output.uid)
            if unfinished is None:
                continue
            request = unfinished.request
            if not request.muted:
                message = unfinished.completion.advance(output)
                if message is not None:
                    outbox.to_clients.append((request.client, message))
            if output.finish_reason is not None:
                self._forget(output.uid)
            elif unfinished.completion.stop_string is not None and not unfinished.abort_sent:
                unfinished.abort_sent = True
                stopped.append(output.uid)
        if stopped:
            outbox.to_scheduler.append(AbortTokens(stopped))
        return outbox

    def _refused_tokens(self, uid: int, reason: str, field_name: str | None) -> Outbox:
        if uid not in self._unfinished:
            return Outbox()
        request = self._unfinished[uid].request
        self._forget(uid)
        if request.muted:
            return Outbox()
        self._mute(request)
        refused = Refused(request.request_id, reason, field_name)
        return Outbox([(request.client, refused)], self._abort([request]))

    def _status(self, status: Status) -> Outbox:
        query = self._queries.pop(status.query_id, None)
        if query is None:
            return Outbox()
        client, query_id = query
        return Outbox([(client, msgspec.structs.replace(status, query_id=query_id))])

    def _abort(self, requests: Iterable[_Request]) -> list[TokenizerMessage]:
        """Ask the scheduler, once for each completion, to end what is left of the requests."""
        uids: list[int] = []
        for uid in (uid for request in requests for uid in sorted(request.uids)):
            if not self._unfinished[uid].abort_sent:
                self._unfinished[uid].abort_sent = True
                uids.append(uid)
        return [AbortTokens(uids)] if uids else []

    def _mute(self, request: _Request) -> None:
        request.muted = True
        self._requests.pop((request.client, request.request_id), None)

    def _forget(self, uid: int) -> None:
        request = self._unfinished.pop(uid).request
        request.uids.discard(uid)
        # The id of a muted request may be in use again.
        if not request.uids and not request.muted:
            del self._requests[request.client, request.request_id]
