"""From the changes of a step to chunks in mailboxes. Only the engine's thread calls this."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minserve.engine import Engine
from minserve.engine.recovery import is_interrupt
from minserve.frontend.outputs import StreamCursor, failure, failure_of
from minserve.frontend.thread.mailbox import Mailbox
from minserve.request import Request


class Delivery:
    """The live requests, each with its mailbox and how much of it was delivered."""

    def __init__(
        self, engine: Engine, close_mailbox: Callable[[Mailbox, BaseException | None], None]
    ) -> None:
        self.cursors: dict[Request, tuple[StreamCursor, Mailbox]] = {}
        self._engine = engine
        self._close_mailbox = close_mailbox

    def add(self, mailbox: Mailbox, make: Callable[[], list[Request]]) -> None:
        """Create a request's samples with `make`, and deliver them to this mailbox."""
        mailbox.accept(make())
        for request in mailbox.requests:
            self.cursors[request] = (StreamCursor(), mailbox)
        if mailbox.aborted:
            self.abort(mailbox)

    def abort(self, mailbox: Mailbox) -> None:
        """End the mailbox's request, and deliver the tokens it has."""
        self._engine.abort_requests(mailbox.requests)
        self.deliver()

    def deliver(self) -> None:
        """Deliver a chunk for every request that has changed since the last call."""
        self._deliver(self._engine.take_updates())

    def recover(self) -> None:
        """After an error between engine and mailboxes: abort requests without a mailbox, and
        deliver to the mailboxes what they missed."""
        engine = self._engine
        lost = [request for request in engine.live_requests() if request not in self.cursors]
        engine.abort_requests(lost)
        for request in lost:
            engine.forget(request)
        for request, (cursor, mailbox) in list(self.cursors.items()):
            if not cursor.ended:
                self._deliver([request])
            elif request in self.cursors:
                self._end_sample(mailbox)

    def _deliver(self, updates: Sequence[Request]) -> None:
        for request in updates:
            known = self.cursors.get(request)
            if known is None:
                continue
            cursor, mailbox = known
            try:
                mailbox.put(cursor.advance(self._engine, request))
            except BaseException as error:
                if is_interrupt(error):
                    raise
                self._fail(mailbox, error)
                continue
            if cursor.ended:
                self._end_sample(mailbox)

    def _end_sample(self, mailbox: Mailbox) -> None:
        """Handle the end of one of the mailbox's samples; the request ends with its last sample."""
        cursors = self.cursors
        if all(cursors[sample][0].ended for sample in mailbox.requests if sample in cursors):
            for sample in mailbox.requests:
                self._engine.forget(sample)
            self._close_mailbox(mailbox, failure_of(mailbox.requests))
            for sample in mailbox.requests:
                cursors.pop(sample, None)

    def _fail(self, mailbox: Mailbox, error: BaseException) -> None:
        """End a request whose text cannot be produced."""
        for request in mailbox.requests:
            self.cursors.pop(request, None)
        self._engine.abort_requests(mailbox.requests)
        for request in mailbox.requests:
            self._engine.forget(request)
        self._close_mailbox(mailbox, failure(mailbox.request_id, error))
