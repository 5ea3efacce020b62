"""The engine's thread, and the event loop's side of what it is at work on."""
import asyncio
import itertools
import threading
import time
from collections import deque

from mindformers.tools.logger import logger

from qwen_mindspore.server.errors import ApiError, unavailable

__all__ = ["Runner", "Ticket"]

RECENT = 64  # answers whose ends tell how fast the queue moves
FAILURES = 3  # steps in a row that may fail before the engine counts as dead


class Ticket:
    """
    An answer that somebody waits for. It belongs to the event loop.

    Attributes:
        answer (Answer): Which grows in the engine's thread; see `generate.answers` for what may be read of it.
        event (asyncio.Event): Set when the answer has grown or ended. Several tickets may share one.
        error (Exception): Why it will not go on, whatever the answer says: the engine has failed, or the server ends.
        submitted, first, ended (float): `time.monotonic()`: when it was asked for; when its first token and its end
            were told. None before.
    """

    def __init__(self, runner, answer, event):
        self.runner, self.answer, self.event = runner, answer, event
        self.failure = None
        self.submitted, self.first, self.ended = time.monotonic(), None, None
        self.seen = 0  # tokens, when it was told last
        self.last = self.submitted

    @property
    def error(self):
        """Exception | None."""
        return self.failure or self.answer.error

    @property
    def is_over(self):
        """Whether nothing more comes. Look at it before the text: what is read then is all there is."""
        return self.ended is not None

    async def changed(self):
        """Wait until the answer has grown or ended since the last call; much growth at once where nobody looked."""
        await self.event.wait()
        self.event.clear()

    def cancel(self):
        """Nobody waits any more: the next step ends it. One that has ended is no error."""
        self.runner.cancel(self)


class Runner:
    """
    Steps an engine in a thread of its own while there is work.

    What one step brings reaches the event loop by one call, and by none where the last one has not been made yet: a
    slow loop, or a slow reader, finds more later, and costs no memory meanwhile.

    Args:
        answers (Answers): Over the engine, which belongs to this runner's thread from `start` on.
        loop (asyncio.AbstractEventLoop): Where tickets live.

    Attributes:
        is_dead (bool): The engine can't go on; nothing is answered any more.
        tickets (dict[id, Ticket]): Those that have not ended.
        waiting_tokens (int): Tokens of the prompts of those that have no token of an answer yet.
        on_growth (Callable[[Ticket, int, float], None] | None): Called in the loop for each ticket that has grown,
            with how many tokens, and the seconds since it did so before or was submitted. `ticket.seen` are those
            that it had before.
    """

    def __init__(self, answers, loop):
        self.answers, self.loop, self.engine = answers, loop, answers.engine
        self.is_dead, self.on_growth = False, None
        self.tickets, self.waiting_tokens = {}, 0
        self._numbers, self._ends = itertools.count(), deque(maxlen=RECENT)
        self._condition = threading.Condition()
        self._is_stopping, self._failures = False, 0
        self._lock, self._changed, self._failed = threading.Lock(), {}, {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self):
        """Begin; the runner itself, for short."""
        self._thread.start()
        return self

    def stop(self, timeout=None):
        """End the thread behind its step, and what is still asked for with an error. Any thread but the engine's."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    # The event loop's side

    def submit(self, prompt, settings, grammar=None, strip=None, event=None):
        """
        Ask for an answer.

        Args:
            prompt, settings, grammar, strip: See `Answers.add`.
            event (asyncio.Event): That of other tickets, to wait for all of them at once. Default: one of its own.

        Returns:
            Ticket.

        Raises:
            ValueError: See `Answers.add`.
            RuntimeError: The engine is dead.
        """
        if self.is_dead or self._is_stopping:
            raise RuntimeError("the engine has stopped")
        answer = self.answers.add(prompt, settings, id=next(self._numbers), grammar=grammar, strip=strip)
        ticket = Ticket(self, answer, event or asyncio.Event())
        self.tickets[answer.id] = ticket
        self.waiting_tokens += answer.prompt_tokens
        if self.is_dead:  # since the first look: nobody would tell it
            self._forget(ticket)
            raise RuntimeError("the engine has stopped")
        with self._condition:
            self._condition.notify()
        return ticket

    def cancel(self, ticket):
        """See `Ticket.cancel`."""
        if ticket.answer.id in self.tickets:
            self.answers.cancel(ticket.answer.id)
            self._forget(ticket)

    def abort(self, error):
        """End all that is asked for, since the server ends: who waits finds the error, 503 unless it is an ApiError."""
        error = error if isinstance(error, ApiError) else unavailable(str(error), code="shutting_down")
        for ticket in list(self.tickets.values()):
            ticket.failure = error
            self.cancel(ticket)
            ticket.event.set()

    def queued(self, ticket):
        """int, how many have to end before the engine begins with a ticket; 0 where it has, or has a place for it."""
        if ticket.first is not None or ticket.is_over:
            return 0
        earlier = next((place for place, id in enumerate(self.tickets) if id == ticket.answer.id), 0)
        return max(0, earlier + 1 - self.engine.max_batch)

    def seconds_for(self, count):
        """About how long so many answers take, by the latest ones; 1 where nothing is known."""
        if len(self._ends) < 2:
            return 1.0
        return count * (time.monotonic() - self._ends[0]) / len(self._ends)

    def _tell(self):
        """Wake those who wait for what has changed."""
        with self._lock:
            changed, self._changed = self._changed, {}
            failed, self._failed = self._failed, {}
        for id, error in failed.items():
            ticket = self.tickets.get(id)
            if ticket is not None:
                ticket.failure = error
                self._forget(ticket)
                ticket.event.set()
        now, grown = time.monotonic(), []
        for id in changed:
            ticket = self.tickets.get(id)
            if ticket is None:  # cancelled meanwhile, or failed
                continue
            is_over, tokens = ticket.answer.finish_reason is not None, ticket.answer.tokens
            if tokens > ticket.seen:
                grown.append((ticket, tokens))
                if ticket.first is None:
                    ticket.first = now
                    self.waiting_tokens -= ticket.answer.prompt_tokens
            if is_over:
                self._forget(ticket)
            ticket.event.set()
        for ticket, tokens in grown:  # last: who waits must hear of it, whatever happens here
            if self.on_growth:
                self.on_growth(ticket, tokens - ticket.seen, now - ticket.last)
            ticket.seen, ticket.last = tokens, now

    def _forget(self, ticket):
        del self.tickets[ticket.answer.id]
        if ticket.first is None:
            self.waiting_tokens -= ticket.answer.prompt_tokens
        ticket.ended = time.monotonic()
        if ticket.answer.finish_reason in ("stop", "length"):
            self._ends.append(ticket.ended)

    # The engine's thread

    def _run(self):
        try:
            while self._has_work():
                self._step()
            error = unavailable("the server is shutting down", code="shutting_down")
        except BaseException as caught:
            logger.critical("the engine has died: %s: %s", type(caught).__name__, caught)
            error = unavailable(f"the engine has died: {type(caught).__name__}: {caught}", code="dead")
        self.is_dead = True
        self._fail_all(error)

    def _has_work(self):
        """Wait for work; False when there is to be none any more."""
        with self._condition:
            while not self._is_stopping and not self.answers.has_work:
                self._condition.wait()
            return not self._is_stopping

    def _step(self):
        try:
            changed = self.answers.step()
        except Exception as error:
            # Those that are there can't go on. What comes afterwards may: an engine that fails at nothing is dead.
            self._failures += 1
            if self._failures > FAILURES:
                raise
            logger.error("a step failed, and ends all requests: %s: %s", type(error).__name__, error)
            self._fail_all(error)
            return
        self._failures = 0
        if changed:
            self._publish({answer.id: answer for answer in changed}, {})

    def _fail_all(self, error):
        self._publish({}, dict.fromkeys(self.answers.abandon(), error))

    def _publish(self, changed, failed):
        with self._lock:
            is_first = not self._changed and not self._failed
            self._changed.update(changed)
            self._failed.update(failed)
        if is_first and (changed or failed):
            try:
                self.loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop is closed: nobody waits any more
                self._is_stopping = True
