"""
Grammars of answers: JSON that fits a schema, and calls of tools in Qwen's ReAct form with a tool's name and arguments
that fit. Before each token of an answer those that can't be its next are ruled out, so that it can't go wrong, whatever
the model would say. Where the tokens that it may have run out, it is brought to its end, see `Grammar.steer`.

The work is done by llguidance (github.com/guidance-ai/llguidance), in Rust.

    grammars = Grammars(tokenizer, model.config.vocab_size, [tokenizer.im_end_id, tokenizer.eod_id])
    grammar = grammars.react(tools, "required", is_open)
    answers.add(prompt, settings, grammar=grammar)
"""
import json
import re
import threading
from collections import OrderedDict

import numpy as np

from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.text import listed, one_line, shown
from qwen_mindspore.generate.endings import Endings
from qwen_mindspore.generate.schema import forces_little, parameters_schema, prepared
from qwen_mindspore.text.react import Open, read_tools

__all__ = ["CHOICES", "Grammar", "Grammars"]

CHOICES = ("auto", "required", "none")

# Within JSON: at most one blank, or a line end and an indent. A small model would go on with blanks for ever.
BLANKS = r"[ ]|\n[ ]{0,32}"

# Behind the arguments comes a line end, since the model's token for "}" has one as a rule.
REACT = r"""start: {label}{thought} ({ends})
LINE: {line}
call: "Action: " ({names})
{calls}
"""
CALL = r"""tool{number}: {begin} {schema} "\n" """
FINAL = r"""final: "Final Answer: " /(?s:.*)/
"""
# A thought: up to 32 lines, none of which begins as another part of the form does. Where a call has to come it is one,
# and short: a model that rambles must come to it.
FREE = {"thought": r'LINE "\n" (LINE "\n"){0,31}',
        "line": r"/[^\n]*/ & ~/(Question|Thought|Action|Action Input|Observation|Final Answer):(?s:.*)/"}
SHORT = {"thought": r'LINE "\n"', "line": r"/[^\n]{0,400}/"}

MOST_TOOLS = 128  # as many as OpenAI's API takes
LONGEST = 256 * 1024  # characters of a grammar: of all tools together
INPUT = b"\nAction Input: "  # JSON begins behind it
# With more tokens to spare beyond the way to the end not each token is looked at: to find a way takes as long as many
# masks. What a token makes necessary is at most what its schema names: with a long one they are more.
AMPLE = range(128, 512)
CHARACTERS = 8  # of a grammar, for each of these tokens

KEPT = 16  # grammars that wait for the next request with the same tools

# A byte of a mask -> what its eight logits must not exceed.
LIMITS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
                  np.float32(np.inf), np.float32(-np.inf))


class Grammar:
    """
    What may come next in one answer.

    Args:
        matcher (llguidance.LLMatcher): At the beginning of the answer.
        apply (callable): Takes the matcher and logits, see `mask`.
        endings (Endings): Of the vocabulary.
        marker (bytes): Behind it comes JSON; nothing: from the beginning.
        is_free (bool): In front of the marker, which need not come, nothing is brought to an end.
        size (int): Characters of the grammar.

    Attributes:
        is_over (bool): Nothing can follow.
    """

    def __init__(self, matcher, apply, endings, marker=b"", is_free=False, size=0):
        self._matcher, self._apply, self._endings = matcher, apply, endings
        self._marker, self._is_free, self._text = marker, is_free, b""
        self._ample = min(max(size // CHARACTERS, AMPLE.start), AMPLE.stop)
        self._way, self._look = None, None  # known to the end; how many tokens are left when it is looked for
        self.is_over = matcher.is_stopped()

    def mask(self, logits):
        """
        Rule out the tokens that can't be the next.

        Args:
            logits (np.ndarray): float32 [vocab_size]; those of such tokens become -inf.

        Raises:
            RuntimeError: The grammar asks for too much work at this place.
        """
        self._apply(self._matcher, logits)

    def steer(self, token, left):
        """
        The next token, so that the answer comes to its end in time. What has to follow in the end is known at each
        place; once there is room for no more than that, it follows. So a text is cut and closed, and a list has no
        further items. Where there was no room from the beginning, or no way was found, nothing is done.

        Args:
            token (int): The one that was chosen; it can stand here.
            left (int): How many tokens there may be behind it.

        Returns:
            int, it or another one, which `accept` must be told of next.
        """
        if self._look is None:
            self._look = max(left // 2, 2 * self._ample)
        if left > self._look or (self._is_free and (self._marker or self._matcher.is_accepting())):
            self._way = None
            return token
        way = self._endings.find(self._matcher, left + 1, self._marker) if self._way is None else self._way
        if way is None:
            self._look = left // 2
            return token
        then = self._behind(token, way, left)
        if then is None:
            token, then = way[0], way[1:]
        spare = left - len(then)
        self._way, self._look = then, left - spare // 4 if spare > self._ample else left
        return token

    def _behind(self, token, way, left):
        """A way to the end behind a token, of at most `left` tokens, or None."""
        if way and way[0] == token:
            return way[1:]
        matcher = self._matcher.deep_copy()
        matcher.consume_token(token)
        if matcher.is_stopped():
            return []
        if len(way) <= left:  # within a text, say, the way stays what it is
            further = matcher.deep_copy()
            if further.try_consume_tokens(way) == len(way) and further.is_stopped():
                return way
        return self._endings.find(matcher, left, self._marker_behind(token))

    def _marker_behind(self, token):
        """What is left to wait for: the marker, or nothing once it is there."""
        return b"" if self._marker in self._text + self._endings.bytes_of(token) else self._marker

    def accept(self, token):
        """
        Go on behind a token that was chosen.

        Args:
            token (int): Its id.

        Raises:
            RuntimeError: It can't stand here.
        """
        if not self._matcher.consume_token(int(token)):
            raise RuntimeError(f"token {token}: it can't stand here, by the grammar of the answer")
        if self._marker:
            self._marker = self._marker_behind(token)
            self._text = (self._text + self._endings.bytes_of(token))[-len(INPUT):]
        self.is_over = self._matcher.is_stopped()


class Grammars:
    """
    Grammars for the answers of a model. Everything may be called from any thread.

    Args:
        tokenizer (QwenTokenizer): The model's.
        vocab_size (int): The model's; it may be more than the tokenizer has tokens.
        ends (Sequence[int]): Ids that end an answer. They are possible where an answer may end.

    Raises:
        ValueError: llguidance is not installed (at the first use).
    """

    def __init__(self, tokenizer, vocab_size, ends):
        self._tokenizer, self._ends = tokenizer, [int(end) for end in ends]
        self._rows = max(vocab_size, tokenizer.vocab_size)
        self._library = self._tokens = self._endings = None
        self._lock, self._kept = threading.Lock(), OrderedDict()
        self._buffers = threading.local()

    def prepare(self):
        """Read the vocabulary, which takes a second with Qwen's. If that was not done, the first grammar does it."""
        with self._lock:
            if self._tokens is None:
                self._library = import_extra("llguidance", "server", "a grammar of answers")
                reader = import_extra("llguidance.tiktoken", "server", "a grammar of answers")
                self._endings = Endings(self._tokenizer, self._ends[0])
                self._tokens = reader.lltokenizer_from_encoding(
                    self._tokenizer.tokenizer, n_vocab=self._rows, eos_token=self._ends)

    def json_schema(self, schema):
        """
        JSON that fits a schema.

        Args:
            schema (dict | bool): JSON schema (2020-12), without not, if, contains, uniqueItems, dependentRequired, a
                oneOf whose parts may overlap, and a few more; $ref within itself alone. Properties come in its order.

        Returns:
            Grammar, for one answer.

        Raises:
            ValueError: What no grammar can be made of, or a too large one; one line.
        """
        return self._grammar([("schema", schema)], lambda parts: f"start: {parts[0]}\n")

    def json_object(self):
        """Any JSON object; see `json_schema`."""
        return self.json_schema({"type": "object"})

    def react(self, tools, choice="auto", is_open=False):
        """
        A thought, then a call or an answer; see `text.react`. A call's name is one of the tools, and its arguments fit
        its schema; behind them the answer is over.

        Args:
            tools (list): See `text.tools.read_tools`.
            choice (str): "auto": a call or an answer; "required": a call; "none"; or the name of the tool to call.
            is_open (Open | bool): Where the answer goes on, see `text.react.react_messages`.

        Returns:
            Grammar, for one answer; None where there is nothing to rule out: without tools, with "none", and behind an
            answer or a call that was begun.

        Raises:
            ValueError: An unknown choice; a call is wanted, and there are no tools, or an answer was begun; parameters
                of a tool that no grammar can be made of, or too large ones.
        """
        tools, is_open = read_tools(tools), Open(is_open)
        if choice not in CHOICES and all(tool.name != choice for tool in tools):
            names = listed([*CHOICES, *(tool.name for tool in tools)])
            raise ValueError(f"tool_choice: expected one of {names}, found {shown(choice)}")
        if choice not in ("auto", "none") and (not tools or is_open == Open.ANSWER):
            what = "behind an answer that was begun" if tools else "without tools"
            raise ValueError(f"tool_choice: expected 'auto' or 'none' {what}, found {shown(choice)}")
        if not tools or choice == "none" or is_open in (Open.ANSWER, Open.ARGUMENTS):
            return None
        if len(tools) > MOST_TOOLS:
            raise ValueError(f"tools: expected up to {MOST_TOOLS}, found {len(tools)}")
        wanted = [tool for tool in tools if choice in CHOICES or tool.name == choice]
        parts = [(f"parameters of {tool.name}", tool.parameters) for tool in wanted]
        return self._grammar(parts, lambda schemas: _react(wanted, schemas, choice == "auto", is_open), is_tool=True,
                             is_free=choice == "auto")

    def _grammar(self, parts, write, is_tool=False, is_free=False):
        """The grammar that `write` makes of rules, one for each (what it is called, schema)."""
        rules, are_small = zip(*(_rule(what, schema, is_tool) for what, schema in parts))
        options = "" if all(are_small) else '%llguidance {"no_forcing": true}\n'
        text = options + write(rules)
        if len(text) > LONGEST:
            raise ValueError(f"tools: expected up to {LONGEST} characters of schemas, found {len(text)}")
        self.prepare()
        marker = INPUT if is_tool else b""
        with self._lock:
            matcher = self._kept.get(text)
            if matcher is not None:
                self._kept.move_to_end(text)
                return Grammar(matcher.deep_copy(), self._apply, self._endings, marker, is_free, len(text))
        if is_tool:  # each alone: so it is known which one is wrong, and that something fits each
            for (what, _), rule in zip(parts, rules):
                self._compiled(f"{options}start: {rule}\n", what)
        matcher = self._compiled(text, "tools" if is_tool else parts[0][0])
        with self._lock:
            self._kept[text] = matcher
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return Grammar(matcher.deep_copy(), self._apply, self._endings, marker, is_free, len(text))

    def _compiled(self, text, what):
        library = self._library
        matcher = library.LLMatcher(self._tokens, library.LLMatcher.grammar_from_lark(text), log_level=0,
                                    limits=library.LLParserLimits(verbose_errors=False))
        if not matcher.is_error():
            matcher.compute_bitmask()  # which finds out that nothing can begin
        if matcher.is_error():
            raise ValueError(f"{what}: {_complaint(matcher)}")
        return matcher

    def _apply(self, matcher, logits):
        bits, limits = self._thread_buffers()
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if matcher.is_error():
            raise RuntimeError(f"the grammar of the answer: {_complaint(matcher)}")
        np.take(LIMITS, bits, axis=0, out=limits, mode="clip")
        np.minimum(logits, limits.reshape(-1)[:len(logits)], out=logits)

    def _thread_buffers(self):
        if not hasattr(self._buffers, "bits"):
            size = (self._rows + 31) // 32 * 4
            self._buffers.bits = np.empty(size, np.uint8)
            self._buffers.limits = np.empty((size, 8), np.float32)
        return self._buffers.bits, self._buffers.limits


def _rule(what, schema, is_tool):
    """(a schema as a rule, whether no long text follows from it)."""
    try:
        schema = prepared(parameters_schema(schema) if is_tool else schema)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': BLANKS}})}", forces_little(schema)


def _react(tools, schemas, is_free, is_open):
    begins = [json.dumps(f"{tool.name}\nAction Input: ", ensure_ascii=False) for tool in tools]
    calls = "\n".join(CALL.format(number=number, begin=begin, schema=schema)
                      for number, (begin, schema) in enumerate(zip(begins, schemas)))
    text = REACT.format(label="" if is_open else '"Thought: " ', ends="call | final" if is_free else "call",
                        names=" | ".join(f"tool{number}" for number in range(len(tools))), calls=calls,
                        **(FREE if is_free else SHORT))
    return text + FINAL * is_free


def _complaint(matcher):
    """What the library complains of, as one line in this project's words where they are known."""
    first, *others = matcher.get_error().strip().split("\n")
    reasons = [line for line in others if line.startswith("error: ")]  # a regular expression's, below the place
    text = " ".join([first, *(reason.removeprefix("error: ") for reason in reasons)])
    if text.startswith("NoExtension"):
        return "nothing fits it"
    unknown = re.search(r"Unimplemented keys: \[(.*)\]", text)
    if unknown:
        return f"{unknown[1].replace(chr(34), '')}: not supported in a grammar; leave it out"
    noise = r"^at \d+\(\d+\): |failed to compile JSON schema: |json-schema:///|\. Enable .coerce_one_of.*"
    text = re.sub(noise, "", text)
    return one_line(text)[:300]
