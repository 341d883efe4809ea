"""Clients are answered one by one; what they send that cannot be read is answered too, and never raises."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import uvloop
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from zipage import links
from zipage.messages import Abort, GenerationRequest, Refused, StatusQuery, Submit
from zipage.sampling_params import SamplingParams

SECONDS = 30.0


def run(coroutine) -> None:
    uvloop.run(asyncio.wait_for(coroutine, SECONDS))


def test_clients_are_answered_by_identity(runtime_dir: Path) -> None:
    async def exchange() -> None:
        with zmq.asyncio.Context() as sockets:
            router = links.ClientRouter(sockets, runtime_dir)
            first, second = (sockets.socket(zmq.DEALER) for _ in range(2))
            for client, request_id in ((first, "a"), (second, "b")):
                client.connect(links.client_address(runtime_dir))
                await client.send(msgspec.msgpack.encode(Abort([request_id])))
            for _ in range(2):
                identity, message = await router.receive()
                assert isinstance(message, Abort)
                assert await router.send(identity, Refused(message.request_ids[0], "no"))
            for client, request_id in ((first, "a"), (second, "b")):
                assert msgspec.msgpack.decode(await client.recv(), type=Refused) == Refused(request_id, "no")
                client.close()
            router.close()

    run(exchange())


def test_client_that_has_gone(runtime_dir: Path) -> None:
    async def exchange() -> None:
        with zmq.asyncio.Context() as sockets:
            router = links.ClientRouter(sockets, runtime_dir)
            client = sockets.socket(zmq.DEALER)
            client.connect(links.client_address(runtime_dir))
            await client.send(msgspec.msgpack.encode(StatusQuery()))
            identity, _ = await router.receive()
            client.close()
            # Until the disconnection is noticed, messages go to where the client was.
            while await router.send(identity, Refused("a", "no")):
                await asyncio.sleep(0.01)
            router.close()

    run(exchange())


@pytest.mark.parametrize(
    "frames", [[msgspec.msgpack.encode(StatusQuery()), b""], [b"", msgspec.msgpack.encode(StatusQuery())], [b"\xc1"]]
)
def test_malformed_client_frames_leave_the_router_working(frames: list[bytes], runtime_dir: Path) -> None:
    async def exchange() -> None:
        with zmq.asyncio.Context() as sockets:
            router = links.ClientRouter(sockets, runtime_dir)
            client = sockets.socket(zmq.DEALER)
            client.connect(links.client_address(runtime_dir))
            await client.send_multipart(frames)
            await client.send(msgspec.msgpack.encode(StatusQuery(3)))
            _, unreadable = await router.receive()
            assert isinstance(unreadable, links.UnreadableMessage)
            _, message = await router.receive()
            assert message == StatusQuery(3)
            client.close()
            router.close()

    run(exchange())


def test_client_message_is_decoded() -> None:
    message = Submit([GenerationRequest(request_id="a", prompt="b", sampling=SamplingParams(n=2))])
    assert links.decode_client_message(msgspec.msgpack.encode(message)) == message


@pytest.mark.parametrize(
    "message, reason, field, request_ids",
    [
        (
            {"type": "Submit", "requests": [{"request_id": "a"}, {"request_id": "b", "sampling": {"n": 0}}]},
            "n must be in [1, 128], not 0",
            "n",
            ["a", "b"],
        ),
        (
            {"type": "Submit", "requests": [{"request_id": "a", "extra": 1}]},
            "Object contains unknown field `extra` - at `$.requests[0]`",
            None,
            ["a"],
        ),
        (
            {"type": "Submit", "requests": [{"request_id": 1}]},
            "Expected `str`, got `int` - at `$.requests[0].request_id`",
            None,
            [],
        ),
        ({"type": "Stop"}, "Invalid value 'Stop' - at `$.type`", None, []),
        ([1], "Expected `object`, got `array`", None, []),
    ],
)
def test_unreadable_client_message(message: object, reason: str, field: str | None, request_ids: list[str]) -> None:
    decoded = links.decode_client_message(msgspec.msgpack.encode(message))
    assert decoded == links.UnreadableMessage(reason, field, request_ids)


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda tail: b"\x82\xa4type\xa6Submit\xa8requests" + tail))
def test_client_bytes_never_raise(frame: bytes) -> None:
    links.decode_client_message(frame)


def test_client_message_nested_without_end() -> None:
    decoded = links.decode_client_message(b"\x82\xa4type\xa6Submit\xa8requests\x91\x81\xa8messages" + b"\x91" * 100_000)
    assert isinstance(decoded, links.UnreadableMessage)
