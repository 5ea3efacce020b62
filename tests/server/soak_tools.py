"""
Calls of tools, and answers in a form, by a real model that draws its tokens: does each of them fit its schema?
Minutes; `bash scripts/soak_tools.sh [--runs 200] [--seed 0]`.

The demo model knows next to nothing of tools, which is what makes it a judge: what it would write goes anywhere. It is
asked over HTTP, 16 requests at once, at temperature 1: streaming and not, by both generations of the API, with random
tools. Prints a line for each trial and for each answer that does not fit; exit code 1 where there is one.
"""
import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import jsonschema

from helpers.schemas import random_object, random_parameters
from helpers.serving import serving
from qwen_mindspore.cli.command import stdout_for_answers
from qwen_mindspore.common.files import cache_folder
from qwen_mindspore.generate.build import build_config, build_model, build_tokenizer, load_config, set_context
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.grammar import Grammars
from qwen_mindspore.generate.schema import parameters_schema

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = Path(cache_folder()) / "models/smollm2-135m-qwen-ms"
AT_ONCE = 16
LONGEST = 500  # characters of a schema: prompts take the longest, and the model holds 2,048 tokens
NAMES = ["get_weather", "search", "搜索", "send-mail", "Action", "Final_Answer", "Observation", 'a "b" c', "f", "🚀"]
QUESTIONS = ["What's the weather in Boston?", "波士顿天气如何", "Write a mail to my landlord about the heating.",
             "Action: x\nAction Input: {}\nObservation: done", "Why?"]
VALIDATOR = jsonschema.Draft202012Validator


# What is asked

def small(draw, chance):
    """What is drawn, once it is small enough for the model."""
    while len(json.dumps(drawn := draw(chance))) > LONGEST:
        pass
    return drawn


def tool_request(chance, max_tokens):
    """(body, {name: parameters} of the tools that may be called)."""
    functions = [{"name": name, "description": "Do it.", "parameters": small(random_parameters, chance)}
                 for name in chance.sample(NAMES, chance.randint(1, 3))]
    schemas = {function["name"]: function["parameters"] for function in functions}
    body = asked(chance, max_tokens)
    if chance.random() < 0.5:
        tools = [{"type": "function", "function": function} for function in functions]
        return {**body, "tools": tools, "tool_choice": "required"}, schemas
    name = chance.choice(functions)["name"]  # the older generation has no "required"
    return {**body, "functions": functions, "function_call": {"name": name}}, {name: schemas[name]}


def form_request(chance, max_tokens):
    """(body, schema)."""
    if chance.random() < 0.3:
        return {**asked(chance, max_tokens), "response_format": {"type": "json_object"}}, {"type": "object"}
    schema = {**small(lambda chance: random_object(chance, 2), chance), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    return {**asked(chance, max_tokens), "response_format": form}, schema


def asked(chance, max_tokens):
    """What all bodies share."""
    return {"messages": [{"role": "user", "content": chance.choice(QUESTIONS)}], "temperature": 1, "top_p": 1,
            "top_k": 0, "seed": chance.randrange(2**31), "max_tokens": max_tokens, "stream": chance.random() < 0.5}


# What is answered

async def answer_of(client, body):
    """(message, finish reason), put together from events if it is streamed."""
    if not body["stream"]:
        response = await client.post("/v1/chat/completions", json=body)
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}: {response.text}")
        (choice,) = response.json()["choices"]
        return choice["message"], choice["finish_reason"]
    message, reason = {}, None
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise ValueError(f"status {response.status_code}: {await response.aread()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[len("data: "):])
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                (choice,) = event["choices"]
                reason = choice["finish_reason"] or reason
                add(message, choice["delta"])
    return message, reason


def add(message, delta):
    """Take a piece into a message."""
    for key, value in delta.items():
        if key == "tool_calls":
            add(message.setdefault(key, [{}])[0], value[0])
        elif isinstance(value, dict):
            add(message.setdefault(key, {}), value)
        elif isinstance(value, str):
            message[key] = message.get(key, "") + value


def check_call(body, schemas, message, reason):
    """ValueError or ValidationError for what is no call of one of the tools, with arguments that fit."""
    older = "functions" in body
    expected = "function_call" if older else "tool_calls"
    if reason != expected:
        raise ValueError(f"expected finish_reason {expected}, found {reason}")
    function = message["function_call"] if older else message["tool_calls"][0]["function"]
    parameters = schemas[function["name"]]
    check(function["arguments"], parameters if isinstance(parameters, dict) and parameters
          else parameters_schema(parameters))
    if not isinstance(json.loads(function["arguments"]), dict):
        raise ValueError("expected an object")


def check_form(body, schema, message, reason):
    """The same for what is no answer that fits."""
    if reason != "stop":
        raise ValueError(f"expected finish_reason stop, found {reason}")
    check(message["content"], schema)


def check(text, schema):
    """ValueError or ValidationError for what is no JSON that fits."""
    VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER).validate(json.loads(text))


# The trials

async def trial(url, requests, check_answer, answers):
    """How many answers fit, and {why: how many} of the others; each of them is told."""
    gate, wrong, ended = asyncio.Semaphore(AT_ONCE), Counter(), itertools.count(1)

    async def one(number, body, schema):
        message = reason = None
        async with gate:
            try:
                message, reason = await answer_of(client, body)
                check_answer(body, schema, message, reason)
            except (ValueError, KeyError, jsonschema.ValidationError) as error:
                why = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
                wrong[why] += 1
                print(f"        {number}: {why}: {json.dumps(message, ensure_ascii=False)[-200:]}",
                      file=answers, flush=True)
        if (count := next(ended)) % 20 == 0:
            print(f"{count} of {len(requests)}", file=sys.stderr, flush=True)

    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=600) as client:
        await asyncio.gather(*(one(number, *request) for number, request in enumerate(requests)))
    return len(requests) - wrong.total(), wrong


def tell(name, url, requests, check_answer, answers):
    """Print the line of a trial; whether it was passed."""
    began = time.monotonic()
    good, wrong = asyncio.run(trial(url, requests, check_answer, answers))
    print(f"{'NOT OK' if wrong else 'ok':7} {name}: {good} of {len(requests)} fit"
          f"{''.join(f'; {count} times {why}' for why, count in wrong.items())}; {time.monotonic() - began:.0f} s",
          file=answers, flush=True)
    return not wrong


def main(argv=None):
    """All trials. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.strip().partition("\n\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="calls of tools; half as many answers in a form (200)")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked (0)")
    parser.add_argument("--max_tokens", type=int, default=512, help="of an answer (512)")
    parser.add_argument("--load_checkpoint", default=str(CHECKPOINT), help="the demo model")
    args = parser.parse_args(argv)
    with stdout_for_answers(verbose=False) as answers:
        return int(not passes(args, answers))


def passes(args, answers):
    """Whether all trials are passed."""
    config = load_config(str(ROOT / "configs/predict_qwen_demo.yaml"), args.load_checkpoint)
    set_context(config)
    tokenizer, size = build_tokenizer(config), build_config(config).vocab_size
    grammars = Grammars(tokenizer, size, [tokenizer.im_end_id, tokenizer.eod_id])
    grammars.prepare()
    chance = random.Random(args.seed)
    calls = [tool_request(chance, args.max_tokens) for _ in range(args.runs)]
    forms = [form_request(chance, args.max_tokens) for _ in range(args.runs // 2)]
    with serving(tokenizer, Engine(build_model(config), max_batch=AT_ONCE),
                 service_options={"grammars": grammars}) as server:
        passed = [tell("calls of tools", server.url, calls, check_call, answers),
                  tell("answers in a form", server.url, forms, check_form, answers)]
    return all(passed)


if __name__ == "__main__":
    sys.exit(main())
