"""
What a server costs beside its engine: the same prompts, over HTTP and by the bare engine, in turns, in one process.

Both answer with the same engine, and compile and cache alike; prompts are of random ids, so that no one begins like
another. Clients are in a process of their own, on the same cores. A figure is the median of the rounds; every answer
is compared.
"""
import asyncio
import json
import random
import statistics
import subprocess
import sys
import threading
import time

import uvicorn

from qwen_mindspore.generate.engine import Request
from qwen_mindspore.server.address import bind, url_of
from qwen_mindspore.server.app import create_app
from qwen_mindspore.server.lifecycle import Server
from qwen_mindspore.text.stream import TextStream

__all__ = ["benchmark", "table"]


def benchmark(service, load, concurrency, prompt_tokens, new_tokens, rounds):
    """
    Measure.

    Args:
        service (Service), load (function): As `cli.serve.build_service` makes them.
        concurrency (list[int]): How many requests at once.
        prompt_tokens, new_tokens (int): Of each request.
        rounds (int): Of each figure; what goes first takes turns.

    Returns:
        dict, `points`: {"concurrency", "engine", "server"} with `tokens_per_second` and `first_token_seconds`, medians
        of the rounds as their `rounds` have them, `ratio` (of the medians of tokens/s), `delay_seconds` (between the
        medians of first tokens), `same_text`.

    Raises:
        RuntimeError: The server did not come up, or did not answer.
    """
    answers = load()
    with bind("127.0.0.1", 0) as listener, _serving(service, answers, listener) as url, _clients() as ask:
        chance, vocabulary = random.Random(0), service.config.vocab_size
        points = []
        for count in concurrency:
            ways = {"engine": lambda prompts: _by_engine(answers, service.settings, prompts, new_tokens),
                    "server": lambda prompts: ask(f"{url}v1/completions", prompts, new_tokens)}
            points.append(_point(ways, count, rounds, lambda: [
                chance.randrange(min(vocabulary, 10_000)) for _ in range(prompt_tokens)]))
    return {"model": service.name, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "points": points}


def _point(ways, count, rounds, new_prompt):
    """What so many requests at once take each way."""
    runs, is_same = {name: [] for name in ways}, True
    for number in range(rounds + 1):
        prompts, found = [new_prompt() for _ in range(count)], {}
        for name in (ways if number % 2 else reversed(ways)):
            # Blocks that one way has filled would save the other their computation: a first token of its own.
            own = [[(prompt[0] + (name == "server")) % 10_000, *prompt[1:]] for prompt in prompts]
            found[name] = ways[name](own)
            if number:  # the first one warms up
                runs[name].append(_figures(found[name]))
        same = ways["engine"]([[(prompt[0] + 1) % 10_000, *prompt[1:]] for prompt in prompts])
        is_same = is_same and _texts(same) == _texts(found["server"])
    medians = {name: {key: statistics.median(run[key] for run in some) for key in some[0]} | {"rounds": some}
               for name, some in runs.items()}
    return {"concurrency": count, **medians, "same_text": is_same,
            "ratio": medians["server"]["tokens_per_second"] / medians["engine"]["tokens_per_second"],
            "delay_seconds": medians["server"]["first_token_seconds"] - medians["engine"]["first_token_seconds"]}


def _texts(found):
    return [answer["text"] for answer in found["answers"]]


def _figures(found):
    """Tokens/s of all together, from the first question to the last token; seconds to a first token, the mean."""
    answers = found["answers"]
    seconds = max(answer["last"] for answer in answers) - found["began"]
    return {"tokens_per_second": sum(answer["tokens"] for answer in answers) / seconds,
            "first_token_seconds": statistics.mean(answer["first"] - found["began"] for answer in answers)}


def _by_engine(answers, settings, prompts, new_tokens):
    """What clients would get, by the engine alone; ids become text when all is done."""
    engine, tokenizer = answers.engine, answers.tokenizer
    settings = settings.override(max_new_tokens=new_tokens, do_sample=False, ignore_eos=True, stop_words=[],
                                 stop_words_ids=[])
    began, found = time.monotonic(), {}
    for prompt in prompts:
        found[engine.add(Request(prompt, settings))] = {"ids": [], "first": None, "last": None}
    while engine.has_work:
        outputs, now = engine.step(), None
        now = time.monotonic()
        for output in outputs:
            if output.error:
                raise output.error
            answer = found[output.id]
            answer["ids"].append(output.token)
            answer["first"], answer["last"] = answer["first"] or now, now
    for answer in found.values():
        ids, stream = answer.pop("ids"), TextStream(tokenizer)
        answer |= {"text": "".join(map(stream.put, ids)) + stream.end(), "tokens": len(ids)}
    return {"began": began, "answers": list(found.values())}


class _serving:
    """A server in a thread, while the block lasts; gives its address."""

    def __init__(self, service, answers, listener):
        # A connection is kept while the bare engine has its turn.
        config = uvicorn.Config(create_app(service), log_config=None, access_log=False, server_header=False, ws="none",
                                timeout_keep_alive=3600)
        self.service, self.listener = service, listener
        self.server = Server(config, service, lambda: answers, config.app.state.activity)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([listener])), daemon=True)

    def __enter__(self):
        self.thread.start()
        while self.service.condition != "ready":
            if not self.thread.is_alive() or self.service.condition == "dead":
                raise RuntimeError("the server did not come up")
            time.sleep(0.01)
        return url_of(self.listener)

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join()
        self.service.runner.stop()


class _clients:
    """The process of the clients, while the block lasts; gives a function of an address, prompts and a length."""

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "qwen_mindspore.server.load"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self.ask

    def ask(self, url, prompts, new_tokens):
        """Have them ask, and wait for what they got."""
        print(json.dumps({"url": url, "prompts": prompts, "max_tokens": new_tokens}), file=self.process.stdin,
              flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the clients got no answer: see above")
        return json.loads(line)

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


def table(report):
    """The report as text."""
    lines = [f"{report['model']}, prompts of {report['prompt_tokens']} tokens, answers of {report['new_tokens']}",
             "at once   engine, tokens/s   server, tokens/s   ratio   first token later by   same text"]
    for point in report["points"]:
        lines.append(f"{point['concurrency']:7}   {point['engine']['tokens_per_second']:16.1f}   "
                     f"{point['server']['tokens_per_second']:16.1f}   {point['ratio']:5.1%}   "
                     f"{1000 * point['delay_seconds']:17.1f} ms   {'yes' if point['same_text'] else 'NO'}")
    return "\n".join(lines)
