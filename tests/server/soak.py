"""
What a server stands: floods, clients that hang up, ten thousand requests. Minutes; `bash scripts/soak_server.sh`.

The engine plays a script, so that it is the server that is measured; clients are in a process of their own. Prints a
line for each trial, and ends with exit code 1 where one is not passed.
"""
import asyncio
import base64
import json
import multiprocessing
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from helpers.scripted import ScriptedEngine
from helpers.serving import serving, until
from qwen_mindspore.server.service import Limits
from qwen_mindspore.text.tokenizer import QwenTokenizer

BODY = {"prompt": "Hello", "max_tokens": 20, "temperature": 0}


# The clients, in a process of their own

def request_of(body, path="/v1/completions"):
    data = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
            "Connection: close\r\n\r\n").encode() + data


async def one(port, data, begin, hang_up=None):
    """(status, seconds from `begin`, or from now, to the status line, all that came)."""
    await asyncio.sleep(max(0.0, begin - time.monotonic()))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = time.monotonic()
    writer.write(data)
    line = await reader.readline()
    seconds = time.monotonic() - sent
    rest = b""
    if hang_up is None:
        rest = await reader.read()
    else:
        await reader.read(hang_up)
    writer.close()
    return int(line.split()[1]) if line else 0, seconds, rest


async def flood(port, count, rate, body):
    """So many requests, so many a second (0: all at once)."""
    data, begin = request_of(body), time.monotonic() + 0.2
    asked = [one(port, data, begin + (number / rate if rate else 0)) for number in range(count)]
    return [(status, seconds) for status, seconds, _ in await asyncio.gather(*asked)]


async def hang_up(port, count, body):
    """So many clients that leave in the middle of an answer, then one that is answered: its seconds."""
    await asyncio.gather(*(one(port, request_of(body), 0, hang_up=random.randrange(200)) for _ in range(count)))
    began = time.monotonic()
    status, _, _ = await one(port, request_of({**BODY, "max_tokens": 2}), 0)
    return status, time.monotonic() - began


async def many(port, count, at_once):
    """So many requests of every kind, at most some at once; how many had which status."""
    chance, gate, statuses = random.Random(0), asyncio.Semaphore(at_once), {}

    async def some():
        body = {**BODY, "stream": chance.random() < 0.5, "n": chance.choice([1, 1, 1, 2]),
                "stop": chance.choice([None, "c", ["xyz"]]), "max_tokens": chance.randrange(1, 40)}
        if chance.random() < 0.05:
            body["temperature"] = -1
        leaves = chance.randrange(300) if chance.random() < 0.1 else None
        async with gate:
            status, _, _ = await one(port, request_of(body), 0, hang_up=leaves)
            statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(some() for _ in range(count)))
    return statuses


def work(pipe):
    """Do what is asked, till None."""
    for name, *arguments in iter(pipe.recv, None):
        pipe.send(asyncio.run(globals()[name](*arguments)))


# The trials

class Trials:
    """Runs them, and remembers whether all were passed."""

    def __init__(self, tokenizer, clients):
        self.tokenizer, self.clients, self.passed = tokenizer, clients, True

    def ask(self, *job):
        """What the clients found."""
        self.clients.send(job)
        return self.clients.recv()

    def tell(self, name, is_passed, found):
        """Print a line."""
        self.passed = self.passed and is_passed
        print(f"{'ok' if is_passed else 'NOT OK':7} {name}: {found}", flush=True)

    def serve(self, engine, **limits):
        """A server, with nothing to hold it back but its limits."""
        return serving(self.tokenizer, engine, service_options={"limits": Limits(**limits)},
                       uvicorn_options={"backlog": 4096})

    def flood(self, rate, most):
        """A thousand come, and each is answered or refused soon."""
        engine = ScriptedEngine("abcdefghijklmnopqrstuvwxyz", pace=0.02, max_batch=16)
        with self.serve(engine, max_queued=64) as server:
            port = int(server.url.rpartition(":")[2])
            self.ask("flood", port, 200, 400, BODY)
            before = memory()
            found = self.ask("flood", port, 1000, rate, {**BODY, "stream": True})
            until(lambda: not engine.sequences, 30)
            grown = memory() - before
        times = sorted(seconds for _, seconds in found)
        counts = {status: sum(one == status for one, _ in found) for status in {status for status, _ in found}}
        self.tell(f"1,000 {'at once' if not rate else f'at {rate} a second'}, each told within {most * 1000:.0f} ms",
                  times[-1] <= most and set(counts) <= {200, 429},
                  f"{counts}, median {1000 * statistics.median(times):.1f} ms, 99 % {1000 * times[989]:.1f}, longest "
                  f"{1000 * times[-1]:.1f}; memory +{grown:.1f} MB")

    def hang_up(self):
        """200 leave; the next one is answered at once, and nothing is left of them."""
        engine = ScriptedEngine("a" * 400, pace=0.02, max_batch=16)
        with self.serve(engine, max_queued=256) as server:
            status, seconds = self.ask("hang_up", int(server.url.rpartition(":")[2]), 200,
                                       {**BODY, "max_tokens": 400, "stream": True})
            until(lambda: not engine.sequences and not server.service.runner.tickets)
            self.tell("200 hang up, then one is answered within 0.3 s", status == 200 and seconds < 0.3,
                      f"{1000 * seconds:.0f} ms, of 4 steps of 20 ms")

    def many(self, count):
        """Ten thousand of every kind; nothing is left, and memory does not grow."""
        engine = ScriptedEngine("abcdefghijklmnopqrstuvwxyz", max_batch=16)
        with self.serve(engine, max_queued=1000) as server:
            port = int(server.url.rpartition(":")[2])
            self.ask("many", port, count // 10, 64)
            engine.requests.clear()
            before, began = memory(), time.monotonic()
            statuses = self.ask("many", port, count, 64)
            seconds = time.monotonic() - began
            until(lambda: not engine.sequences)
            engine.requests.clear()
            left, grown = len(server.service.runner.tickets) + server.service.runner.waiting_tokens, memory() - before
        self.tell(f"{count:,} requests leave nothing behind", left == 0 and set(statuses) <= {200, 400} and grown < 20,
                  f"{statuses}, {count / seconds:.0f} a second, memory +{grown:.1f} MB")


def memory():
    """MB that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main():
    """All trials. Returns the exit code."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    clients = context.Process(target=work, args=(theirs,), daemon=True)
    clients.start()
    with tempfile.TemporaryDirectory() as folder:
        lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
        Path(folder, "qwen.tiktoken").write_text("".join(lines))
        trials = Trials(QwenTokenizer(folder), ours)
        trials.flood(500, 0.05)
        trials.flood(0, 1.0)
        trials.hang_up()
        trials.many(10_000)
    ours.send(None)
    return int(not trials.passed)


if __name__ == "__main__":
    sys.exit(main())
