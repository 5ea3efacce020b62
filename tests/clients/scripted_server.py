"""
A server whose "model" is a few rules: it calls the tool that a question names, with arguments made from the question,
and tells what came of it. So clients that need a clever model can be run, quickly and always the same.
"""
import argparse
import base64
import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from helpers.scripted import ScriptedEngine
from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.grammar import Grammars
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server import lifecycle
from qwen_mindspore.server.address import bind
from qwen_mindspore.server.app import create_app
from qwen_mindspore.server.metrics import Metrics
from qwen_mindspore.server.service import Service
from qwen_mindspore.text.tokenizer import QwenTokenizer

# What comes next in JSON when nothing is to be said: the shortest value.
SHORTEST = '"}],:{[0123456789tfnruealsd-'
ROOM, VOCABULARY, END, ENDS = 32768, 512, 258, (256, 258)


def tokenizer_of(folder):
    """The tests' vocabulary: the 256 bytes and Qwen's control tokens."""
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    return QwenTokenizer(str(folder))


# The rules

def answers_to(prompt):
    """list[str], what may be said to a prompt, the best first."""
    if "<|im_start|>" not in prompt:
        return [" it is what you make of it."]
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?=<\|im_end\|>|\Z)", prompt, re.S)
    question = ([content for role, content in turns if role == "user"] or [""])[-1]
    last = turns[-1][1] if turns[-1][0] == "assistant" else ""
    if "✿FUNCTION✿" in prompt:
        return _marked(prompt, question, last)
    if "<tools>" in prompt:
        return _tagged(prompt, question)
    if "\nAction Input: the input to the action" in prompt:
        return _react(prompt, question, last)
    if "JSON" in question:
        return [json.dumps(dict.fromkeys(re.findall(r"'(\w+)'", question), "a cat"))]
    return [f"You said: {question.strip()[:60]}"]


def _react(prompt, question, last):
    """Qwen's form: the instruction stands before a question, and the loop is one turn, the model's or the user's."""
    query, _, loop = question.rpartition("Question: ")[2].partition("\nThought:")
    loop = last or loop
    lead = " " if loop.endswith("Thought:") or question.endswith("\nThought:") else "Thought: "
    observations = re.findall(r"\nObservation: (.*?)(?=\nThought:|\Z)", loop, re.S)
    lead += "I know what to do."  # the same before all, so that a grammar may choose behind it
    final = f"{lead}\nFinal Answer: {observations[-1] if observations else 'Hello!'}"
    tools = {name: json.loads(parameters) for name, parameters in re.findall(
        r"^(\S+): Call this tool to interact with [\s\S]*?Parameters: ([\[{].*?[\]}])(?: Format.*)?$", prompt, re.M)}
    calls = [f"{lead}\nAction: {name}\nAction Input: {made(parameters, query)}\n"
             for name, parameters in sorted(tools.items(), key=lambda tool: not _is_named(tool[0], query))]
    is_wanted = any(_is_named(name, query) for name in tools) and not observations
    return [*calls, final] if is_wanted else [final, *calls]


def _is_named(name, query):
    """Whether a question has a tool's name, or a word of it."""
    return name in query or any(word in re.findall(r"\w+", query.lower()) for word in name.split("_") if len(word) > 3)


def _marked(prompt, question, last):
    """The form that Qwen-Agent calls "qwen"."""
    results = re.findall(r"✿RESULT✿: (.*?)(?=\n✿|\Z)", last, re.S)
    if results:
        return [f": {results[-1]}"]
    name, parameters = re.search(r"^(\S+): .*?Parameters: ([\[{].*[\]}])", prompt, re.M).groups()
    return [f"✿FUNCTION✿: {name}\n✿ARGS✿: {made(json.loads(parameters), question)}\n"]


def _tagged(prompt, question):
    """The form that Qwen-Agent calls "nous"."""
    response = re.search(r"<tool_response>\n(.*?)\n</tool_response>", question, re.S)
    if response:
        return [f"It is {response[1]}"]
    tool = json.loads(re.search(r"<tools>\n(.*?)\n", prompt, re.S)[1])["function"]
    arguments = made(tool["parameters"], question)
    return [f'<tool_call>\n{{"name": "{tool["name"]}", "arguments": {arguments}}}\n</tool_call>']


def made(parameters, query):
    """str, arguments in JSON, of what a question has."""
    if isinstance(parameters, list):  # Qwen's own form
        parameters = {"type": "object", "properties": {one["name"]: one.get("schema", {"type": "string"})
                                                       for one in parameters}}
    numbers = iter([json.loads(number) for number in re.findall(r"-?\d+(?:\.\d+)?", query)])
    words = iter(re.findall(r'"([^"]+)"|\'([^\']+)\'', query))
    return json.dumps(_value(parameters, numbers, words, query), ensure_ascii=False)


def _value(schema, numbers, words, query):
    kind = schema.get("type")
    if "enum" in schema:
        return next((value for value in schema["enum"] if str(value) in query), schema["enum"][0])
    if kind == "object":
        return {name: _value(inner, numbers, words, query) for name, inner in schema.get("properties", {}).items()}
    if kind in ("integer", "number"):
        return next(numbers, 1)
    if kind == "boolean":
        return True
    if kind == "array":
        return [_value(schema.get("items", {"type": "string"}), numbers, words, query)]
    found = next(words, None)
    return (found[0] or found[1]) if found else (re.findall(r"[A-Z]\w+", query) or [query.strip()])[-1]


# The engine

class Candidates:
    """
    In a script's place: the tokens of the best of some answers that a grammar lets pass; where it lets none, the
    shortest JSON.
    """

    def __init__(self, texts, grammar):
        self.candidates = [[*text.encode(), END] for text in texts]
        self.grammar, self.said = grammar, []

    def pop(self, _=0):
        """The next token."""
        allowed = np.zeros(VOCABULARY, np.float32)
        if self.grammar is not None:
            self.grammar.mask(allowed)
        place = len(self.said)
        token = next((one[place] for one in self.candidates if one[:place] == self.said and len(one) > place
                      and np.isfinite(allowed[one[place]])), None)
        if token is None:
            token = next(id for id in (*SHORTEST.encode(), END, *range(VOCABULARY)) if np.isfinite(allowed[id]))
        self.said.append(token)
        return token


class Ruled(ScriptedEngine):
    """A scripted engine that follows the rules above."""

    def __init__(self, tokenizer):
        super().__init__("", pace=0.001, max_batch=8, room=ROOM, end=END, vocab_size=VOCABULARY)
        self.tokenizer = tokenizer

    def add(self, request):
        id = super().add(request)
        with self.lock:
            sequence = self.sequences[id]
            sequence.left = Candidates(answers_to(self.tokenizer.decode(list(request.prompt))), request.grammar)
        return id


def serve(port, folder, name):
    """Serve till a signal. Returns the exit code."""
    import uvicorn

    tokenizer = tokenizer_of(folder)
    engine = Ruled(tokenizer)
    service = Service(name, tokenizer, engine.config, GenerationSettings(chat_format="chatml", max_new_tokens=400),
                      grammars=Grammars(tokenizer, VOCABULARY, ENDS), metrics=Metrics(name), created=1)
    app = create_app(service)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2)
    server = lifecycle.Server(config, service, lambda: Answers(engine, tokenizer), app.state.activity, 1)
    with bind("127.0.0.1", port) as listener:
        return lifecycle.serve(server, [listener])


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", default="qwen-demo")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return serve(args.port, Path(folder), args.name)


if __name__ == "__main__":
    sys.exit(main())
