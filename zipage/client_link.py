"""The clients' end of the client link: one DEALER socket."""

import contextlib
import socket
from typing import Any

import zmq

from zipage.errors import EngineError

# How often a client that waits asks a silent engine for its status.
HEARTBEAT_SECONDS = 1.0
# How often one that was given a `check` calls it meanwhile.
CHECK_SECONDS = 0.2

# How long an abort may take to leave after the client has been closed.
_LINGER_MS = 500


def connect_dealer(context: zmq.Context[Any], address: str) -> Any:
    """Connect a DEALER without queue limits that never reconnects: another engine does not know this client's requests.

    Raises:
        EngineError: the address is not one, or nobody listens there.
    """
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.SNDHWM, 0)
    dealer.setsockopt(zmq.RCVHWM, 0)
    dealer.setsockopt(zmq.LINGER, _LINGER_MS)
    dealer.setsockopt(zmq.RECONNECT_IVL, -1)
    with contextlib.ExitStack() as undo:
        undo.callback(context.term)
        undo.callback(dealer.close, 0)
        _connect(dealer, address)
        undo.pop_all()
    return dealer


def _connect(dealer: Any, address: str) -> None:
    try:
        dealer.connect(address)
    except (zmq.ZMQError, TypeError) as error:
        raise EngineError(f"cannot connect to {address!r}: {error}; an address is like ipc:///path/to/socket") from None
    # ZeroMQ connects in the background and does not tell when it cannot; the operating system does.
    if address.startswith("ipc:///"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(address.removeprefix("ipc://"))
            except OSError as error:
                raise EngineError(f"no engine listens at {address}: {error.strerror}") from None


def unreachable(address: str) -> EngineError:
    """The error for a connection that has ended."""
    return EngineError(f"the engine at {address} cannot be reached")


def silent_for(address: str, seconds: float) -> EngineError:
    """The error for an engine that does not answer."""
    return EngineError(f"no answer from an engine at {address} within {seconds:g} s")


def client_closed() -> EngineError:
    """The error for the use of a closed client."""
    return EngineError("the client is closed")
