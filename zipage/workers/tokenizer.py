"""The tokenizer process: clients' texts become tokens for the scheduler, its tokens become texts for the clients."""

import asyncio
from pathlib import Path

import uvloop
import zmq.asyncio

from zipage.engine_messages import SchedulerMessage, TokenizerMessage
from zipage.links import AsyncLink, ClientRouter, UnreadableMessage, connect_tokenizer_link, run_until_stopped
from zipage.messages import Alive, Refused
from zipage.text.frontend import Outbox, TextFrontend
from zipage.text.model_text import load_model_text
from zipage.text.spans import TextSpans
from zipage.tracing import Tracer, now
from zipage.workers.process import WorkerContext, report_ready, run_worker

_ALIVE_SECONDS = 1.0


class TokenizerProcess:
    """Loops for the clients and for the scheduler around one `TextFrontend`."""

    def __init__(
        self,
        frontend: TextFrontend,
        clients: ClientRouter,
        scheduler: AsyncLink[SchedulerMessage, TokenizerMessage],
        tracer: Tracer,
    ) -> None:
        self._spans = TextSpans(tracer)
        self._frontend = frontend
        self._clients = clients
        self._scheduler = scheduler

    async def serve(self) -> None:
        """Serve without end."""
        await asyncio.gather(self._serve_clients(), self._serve_scheduler(), self._look_after_clients())

    async def _serve_clients(self) -> None:
        while True:
            client, message = await self._clients.receive()
            if isinstance(message, UnreadableMessage):
                for request_id in message.request_ids or [""]:
                    await self._clients.send(client, Refused(request_id, message.reason, message.field))
            else:
                start = now()
                outbox = self._frontend.on_client(client, message)
                self._spans.submitted(start, outbox)
                await self._send(outbox)

    async def _serve_scheduler(self) -> None:
        while True:
            message, start = await self._scheduler.receive(), now()
            await self._send(self._frontend.on_scheduler(message))
            self._spans.delivered(start, message)

    async def _look_after_clients(self) -> None:
        """Find clients that have gone before there is an answer to send them."""
        while True:
            await asyncio.sleep(_ALIVE_SECONDS)
            await self._send(Outbox([(client, Alive()) for client in self._frontend.waiting_clients()]))

    async def _send(self, outbox: Outbox) -> None:
        for message in outbox.to_scheduler:
            await self._scheduler.send(message)
        gone = set()
        for client, answer in outbox.to_clients:
            if client not in gone and not await self._clients.send(client, answer):
                gone.add(client)
        for client in gone:
            await self._send(self._frontend.client_gone(client))


async def _run(context: WorkerContext) -> None:
    model = load_model_text(Path(context.config.model))
    sockets = zmq.asyncio.Context()
    scheduler = connect_tokenizer_link(sockets, context.runtime_dir, context.tracer)
    clients = ClientRouter(sockets, context.runtime_dir)
    process = TokenizerProcess(TextFrontend(model, context.config.seed), clients, scheduler, context.tracer)
    report_ready(context)
    try:
        await run_until_stopped(context.lifeline_fd, process.serve())
    finally:
        clients.close()
        scheduler.close()


def main(context: WorkerContext) -> None:
    """Serve until the process is to stop."""
    uvloop.run(_run(context))


if __name__ == "__main__":
    run_worker("tokenizer", main)
