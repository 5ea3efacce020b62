"""The engine's thread and the event loop: what is asked for, told, cancelled, and what fails."""
import asyncio
import contextlib
import time

import pytest

from helpers.scripted import ScriptedEngine, scripted_service
from qwen_mindspore.server.errors import ApiError
from qwen_mindspore.server.service import Limits, Metrics


def play(tokenizer, engine, scenario, **changes):
    """Run a coroutine of a service over an engine, and see that nothing is left."""
    async def main():
        with scripted_service(tokenizer, engine, asyncio.get_running_loop(), **changes) as service:
            await asyncio.wait_for(scenario(service), 20)
            await until(lambda: not engine.sequences)
            assert not service.runner.tickets and service.runner.waiting_tokens == 0

    asyncio.run(main())


async def until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        await asyncio.sleep(0.002)


async def all_of(ticket):
    texts = []
    while not ticket.is_over:
        await ticket.changed()
        texts.append(ticket.answer.text)
    return texts


def test_an_answer_grows_and_ends(tokenizer):
    async def scenario(service):
        ticket = service.runner.submit([1, 2, 3], service.settings)
        texts = await all_of(ticket)
        assert texts == sorted(texts, key=len) and texts[-1] == "Hello!"
        assert ticket.answer.finish_reason == "stop" and ticket.error is None
        assert ticket.submitted <= ticket.first <= ticket.ended

    play(tokenizer, ScriptedEngine("Hello!", pace=0.002), scenario)


def test_a_slow_reader_finds_all_that_has_come_meanwhile(tokenizer):
    async def scenario(service):
        ticket = service.runner.submit([1], service.settings)
        await until(lambda: ticket.is_over)
        assert await all_of(ticket) == [] and ticket.answer.text == "Hello!"

    play(tokenizer, ScriptedEngine("Hello!"), scenario)


def test_a_loop_that_is_busy_is_called_once(tokenizer):
    async def scenario(service):
        calls, told = [], service.runner._tell
        service.runner._tell = lambda: calls.append(told())
        ticket = service.runner.submit([1], service.settings)
        time.sleep(0.2)  # the engine has ended long before
        await until(lambda: ticket.is_over and calls)
        assert len(calls) == 1

    play(tokenizer, ScriptedEngine("x" * 50), scenario)


def test_a_cancelled_answer_leaves_the_engine_within_a_step(tokenizer):
    engine = ScriptedEngine("x" * 90, pace=0.005)

    async def scenario(service):
        ticket = service.runner.submit([1], service.settings)
        await ticket.changed()
        steps = engine.steps
        ticket.cancel()
        ticket.cancel()
        await until(lambda: not engine.sequences)
        assert engine.steps - steps <= 2

    play(tokenizer, engine, scenario)


def test_growth_is_told_once_with_how_much_there_was_before(tokenizer):
    grown = []

    async def scenario(service):
        service.runner.on_growth = lambda ticket, tokens, seconds: grown.append((ticket.seen, tokens))
        await all_of(service.runner.submit([1], service.settings))

    play(tokenizer, ScriptedEngine("Hello!", pace=0.002), scenario)
    assert [seen for seen, _ in grown] == [sum(tokens for _, tokens in grown[:i]) for i in range(len(grown))]
    assert sum(tokens for _, tokens in grown) == 7


def test_who_waits_hears_of_growth_though_counting_it_fails(tokenizer):
    def fails(*arguments):
        raise OSError("no counters")

    async def scenario(service):
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        service.runner.on_growth = fails
        tickets = [service.runner.submit([1], service.settings) for _ in range(3)]
        for ticket in tickets:
            await all_of(ticket)
            assert ticket.answer.text == "Hello!"

    play(tokenizer, ScriptedEngine("Hello!", pace=0.002), scenario)


def test_tickets_may_share_an_event(tokenizer):
    async def scenario(service):
        event = asyncio.Event()
        tickets = [service.runner.submit([1], service.settings, event=event) for _ in range(3)]
        while not all(ticket.is_over for ticket in tickets):
            await event.wait()
            event.clear()
        assert [ticket.answer.text for ticket in tickets] == ["ab"] * 3

    play(tokenizer, ScriptedEngine("ab"), scenario)


def test_what_the_engine_says_of_one_request_ends_it_alone(tokenizer):
    async def scenario(service):
        good, bad = (service.runner.submit([token], service.settings) for token in (1, 2))
        await all_of(bad)
        await all_of(good)
        assert bad.answer.finish_reason == "error" and str(bad.error) == "overflow"
        assert good.answer.text == "fine"

    play(tokenizer, ScriptedEngine(lambda r: [*b"ab", ValueError("overflow")] if r.prompt[0] == 2 else "fine"),
         scenario)


def test_a_failed_step_ends_all_requests_and_the_next_is_answered(tokenizer):
    engine = ScriptedEngine("fine")

    async def scenario(service):
        engine.hold.clear()
        tickets = [service.runner.submit([1], service.settings) for _ in range(6)]
        engine.broken = OSError("no memory")
        engine.hold.set()
        for ticket in tickets:
            await all_of(ticket)
            assert str(ticket.error) == "no memory"
        assert not service.runner.is_dead and service.condition == "ready"
        assert (await all_of(service.runner.submit([1], service.settings)))[-1] == "fine"

    play(tokenizer, engine, scenario)


def test_what_a_failed_step_has_ended_is_given_back_though_nothing_follows(tokenizer):
    async def scenario(service):
        engine = service.runner.engine
        engine.hold.clear()
        tickets = [service.runner.submit([1], service.settings) for _ in range(3)]
        engine.broken = OSError("no memory")
        engine.hold.set()
        for ticket in tickets:
            await all_of(ticket)
        assert all(str(ticket.error) == "no memory" for ticket in tickets)

    play(tokenizer, ScriptedEngine("x" * 100), scenario)


def test_who_waits_hears_of_the_threads_death(tokenizer):
    engine = ScriptedEngine("fine")

    async def main():
        with scripted_service(tokenizer, engine, asyncio.get_running_loop()) as service:
            engine.hold.clear()
            ticket = service.runner.submit([1], service.settings)
            engine.broken = SystemExit("gone")
            engine.hold.set()
            await asyncio.wait_for(all_of(ticket), 5)
            assert "the engine has died: SystemExit: gone" in str(ticket.error)
            assert service.runner.is_dead and service.condition == "dead"
            with pytest.raises(RuntimeError, match="the engine has stopped"):
                service.runner.submit([1], service.settings)
            with pytest.raises(ApiError, match="the engine has died: no new requests are taken") as caught:
                service.admit(1)
            assert caught.value.status == 503

    asyncio.run(main())


def test_abort_tells_all_who_wait(tokenizer):
    engine = ScriptedEngine("x" * 90, pace=0.005)

    async def scenario(service):
        tickets = [service.runner.submit([1], service.settings) for _ in range(6)]
        service.runner.abort(RuntimeError("the server is shutting down"))
        for ticket in tickets:
            await all_of(ticket)
            assert str(ticket.error) == "the server is shutting down"

    play(tokenizer, engine, scenario)


def test_stopping_the_thread_ends_what_is_asked_for(tokenizer):
    async def main():
        with scripted_service(tokenizer, ScriptedEngine("x" * 90, pace=0.01), asyncio.get_running_loop()) as service:
            ticket = service.runner.submit([1], service.settings)
            service.runner.stop(5)
            await asyncio.wait_for(all_of(ticket), 5)
            assert "shutting down" in str(ticket.error)

    asyncio.run(main())


# Admission

class Counted(Metrics):
    def __init__(self):
        self.rejections = []

    def rejected(self, status):
        self.rejections.append(status)


def test_the_queue_is_bounded_by_answers(tokenizer):
    engine, metrics = ScriptedEngine("x", max_batch=2), Counted()

    async def scenario(service):
        engine.hold.clear()
        for _ in range(5):
            service.admit(1)
            service.runner.submit([1], service.settings)
        with pytest.raises(ApiError, match="the queue is full: it holds 3 answers beside the 2") as caught:
            service.admit(1)
        assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
        assert metrics.rejections == [429]
        engine.hold.set()

    play(tokenizer, engine, scenario, limits=Limits(max_queued=3), metrics=metrics)


def test_the_queue_is_bounded_by_tokens_but_one_long_prompt_comes_in(tokenizer):
    engine = ScriptedEngine("x")

    async def scenario(service):
        engine.hold.clear()
        service.admit(100)
        service.runner.submit([1] * 100, service.settings)
        with pytest.raises(ApiError, match="prompts of 100 tokens wait"):
            service.admit(1)
        engine.hold.set()
        await until(lambda: not service.runner.tickets)
        service.admit(100)

    play(tokenizer, engine, scenario, limits=Limits(max_queued_tokens=50))


@pytest.mark.parametrize("state, said", [("loading", "the model is being loaded"),
                                         ("draining", "the server is shutting down: no new requests")])
def test_nobody_comes_in_while_the_server_can_not_answer(tokenizer, state, said):
    async def scenario(service):
        service.state = state
        with pytest.raises(ApiError, match=said) as caught:
            service.admit(1)
        assert caught.value.status == 503 and caught.value.headers["Retry-After"] == "5"

    with contextlib.suppress(KeyboardInterrupt):
        play(tokenizer, ScriptedEngine("x"), scenario)
