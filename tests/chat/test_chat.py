"""
Chat: answers that greedy decoding of the right prompt gives, however they are asked for; what ends an answer; what a
base model says; what fits into the model.
"""
import copy
import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
from mindformers.models.llama import LlamaConfig

from qwen_mindspore.chat import chat as qwen_chat
from qwen_mindspore.chat.chat import Reply, chat, chat_batch, chat_settings, chat_stream, make_context, stream_reply
from qwen_mindspore.generate.engine import Output
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.text.tokenizer import QwenTokenizer

STOPS = [256, 257, 258]
DIALOGUE = [("Who?", "Me."), ("Where?", "Hère, 世界.")]


@pytest.fixture(scope="module")
def tokenizer(tiny_hf):
    return QwenTokenizer(str(tiny_hf))


@pytest.fixture(scope="module")
def model(build_tiny):
    return build_tiny(use_past=True, batch_size=3, chat_format="chatml", seq_length=256)


@pytest.fixture(scope="module")
def answer(build_tiny, tokenizer):
    """A function that gives an answer by `generate`, which is checked against the reference: ids, text."""
    other = build_tiny(use_past=True, seq_length=256)

    def greedy(prompt, max_new_tokens=16):
        ids = other.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=STOPS)[0]
        ids = [token for token in ids[len(prompt):].tolist() if token not in STOPS]
        return ids, tokenizer.decode(ids, skip_special_tokens=True).strip()

    return greedy


class TestAnswers:
    @pytest.mark.parametrize("history, system", [(None, "You are a helpful assistant."), (DIALOGUE, "S<|im_end|>"),
                                                 (DIALOGUE[:1], "")])
    def test_a_chat_is_the_greedy_continuation_of_its_prompt(self, model, tokenizer, answer, history, system):
        _, expected = answer(make_context(tokenizer, "Why?", history, system)[1])
        response, new = chat(model, tokenizer, "Why?", history, system, max_new_tokens=16)
        assert response == expected
        assert new == [*(history or []), ("Why?", expected)]

    def test_a_conversation_goes_on(self, model, tokenizer, answer):
        history = None
        for query in ("Hi", "And then?", "你好"):
            _, expected = answer(make_context(tokenizer, query, history, "S")[1])
            response, history = chat(model, tokenizer, query, history, "S", max_new_tokens=16)
            assert response == expected
        assert [query for query, _ in history] == ["Hi", "And then?", "你好"]

    def test_what_was_said_is_not_computed_again(self, model, tokenizer):
        _, history = chat(model, tokenizer, "Remember this long question, please", system="S", max_new_tokens=16)
        before = model.chat_engine.stats()
        chat(model, tokenizer, "Why?", history, "S", max_new_tokens=1)
        after = model.chat_engine.stats()
        assert after.reused_tokens - before.reused_tokens >= 64 > after.computed_tokens - before.computed_tokens

    def test_the_history_given_stays_as_it_was(self, model, tokenizer):
        history = [list(turn) for turn in DIALOGUE]
        before = copy.deepcopy(history)
        for append in (True, False):
            _, new = chat(model, tokenizer, "Why?", history, append_history=append, max_new_tokens=2)
            assert history == before and new is not history
            assert len(new) == 2 + append

    def test_a_stream_grows_to_the_answer_of_chat(self, model, tokenizer, answer):
        _, expected = answer(make_context(tokenizer, "Why?", DIALOGUE)[1], 40)
        texts = list(chat_stream(model, tokenizer, "Why?", DIALOGUE, max_new_tokens=40))
        assert texts[-1] == expected
        assert len(texts) > 10
        assert all(later.startswith(text) and later != text for text, later in itertools.pairwise(texts))

    def test_a_batch_answers_each_as_if_alone(self, model, tokenizer, answer):
        queries = ["Why?", "Where is it, after all?", "你好", "x", "And?"]
        histories = [DIALOGUE, None, DIALOGUE[:1], [], DIALOGUE]
        systems = ["S", "A longer system message", "S", "", "S"]
        expected = [answer(make_context(tokenizer, *case)[1])[1] for case in zip(queries, histories, systems)]
        responses, new = chat_batch(model, tokenizer, queries, histories, systems, max_new_tokens=16)
        assert responses == expected
        assert new == [[*(history or []), (query, text)]
                       for history, query, text in zip(histories, queries, expected)]
        assert chat_batch(model, tokenizer, [], max_new_tokens=16) == ([], [])

    def test_two_streams_and_generate_may_take_turns(self, model, tokenizer, answer):
        queries = ["Why?", "Where is it?"]
        expected = [answer(make_context(tokenizer, query)[1])[1] for query in queries]
        streams = [chat_stream(model, tokenizer, query, max_new_tokens=16) for query in queries]
        last = ["", ""]
        for first, second in zip(*streams):
            last = [first, second]
            model.generate([1, 2, 3], max_new_tokens=2, do_sample=False)
        ends = [list(stream)[-1:] for stream in streams]
        assert [(end or [text])[0] for end, text in zip(ends, last)] == expected

    def test_the_same_seed_draws_the_same_answer(self, model, tokenizer):
        def draw(seed):
            return chat(model, tokenizer, "Why?", do_sample=True, temperature=2.0, seed=seed, max_new_tokens=12)[0]

        assert draw(1) == draw(1) != draw(2)


class TestText:
    @pytest.mark.parametrize("query, history, system, said", [
        ("a\ud83d", None, "S", "query: character 2"), ("a", None, "\ude00", "system: character 1"),
        ("a", [("b", "c"), ("d", "\ud83d")], "S", "history: turn 2: character 1")])
    def test_half_a_character_is_refused_by_name(self, model, tokenizer, query, history, system, said):
        for ask in (chat, chat_stream, stream_reply):
            with pytest.raises(ValueError, match=f"^{said} is half a surrogate pair"):
                ask(model, tokenizer, query, history, system)
        with pytest.raises(ValueError, match=f"^conversation 1: {said} is half a surrogate pair"):
            chat_batch(model, tokenizer, ["x", query], [None, history], ["S", system])

    def test_in_raw_as_well(self, model, tokenizer):
        with pytest.raises(ValueError, match="^query: character 1 is half a surrogate pair"):
            chat(model, tokenizer, "\ud83d", chat_format="raw")

    @pytest.mark.parametrize("query", ["", " ", "\u2028", "\u3000\n"])
    def test_white_space_is_no_question(self, model, tokenizer, query):
        for chat_format in ("chatml", "raw"):
            with pytest.raises(ValueError, match="^query is empty$"):
                chat(model, tokenizer, query, chat_format=chat_format)


class TestEnds:
    def test_max_new_tokens(self, model, tokenizer):
        *_, reply = stream_reply(model, tokenizer, "Why?", max_new_tokens=5)
        assert (reply.tokens, reply.finish_reason) == (5, "length")

    def test_stop_words_ids_end_an_answer_and_are_cut_off(self, model, tokenizer, answer):
        ids, _ = answer(make_context(tokenizer, "Why?")[1])
        word = ids[6:9]
        place = next(place for place in range(len(ids)) if ids[place:place + 3] == word)
        *_, reply = stream_reply(model, tokenizer, "Why?", stop_words_ids=[word], max_new_tokens=16)
        assert reply == Reply(tokenizer.decode(ids[:place], skip_special_tokens=True).strip(), place + 3, "stop")

    def test_a_stop_string_that_spans_tokens_ends_an_answer_and_the_work(self, model, tokenizer, answer):
        _, text = answer(make_context(tokenizer, "Why?")[1], 40)
        word = text[7:12]
        *_, reply = stream_reply(model, tokenizer, "Why?", stop_words=[word], max_new_tokens=40)
        assert (reply.text, reply.finish_reason) == (text[:text.index(word)].strip(), "stop")
        assert reply.tokens < 40 and not model.chat_engine.has_work

    def test_an_answer_that_fills_the_model_is_cut_there(self, model, tokenizer):
        prompt = make_context(tokenizer, "Why?")[1]
        *_, reply = stream_reply(model, tokenizer, "Why?", max_new_tokens=10**6)
        assert (reply.tokens, reply.finish_reason) == (256 - len(prompt), "length")

    @pytest.mark.parametrize("texts", [0, 1, 5])
    def test_closing_a_stream_early_ends_the_work(self, model, tokenizer, texts):
        stream = chat_stream(model, tokenizer, "Why?", max_new_tokens=100)
        for _ in range(texts):
            next(stream)
        stream.close()
        assert not model.chat_engine.has_work
        assert model.chat_engine.stats().free_blocks == model.config.cache_blocks

    def test_a_failure_in_a_step_is_raised_and_the_next_chat_begins_afresh(self, model, tokenizer, monkeypatch):
        before = chat(model, tokenizer, "Why?", max_new_tokens=4)
        with monkeypatch.context() as broken:
            broken.setattr(qwen_chat.Engine, "step", lambda self: [Output(next(iter(self.sequences)), None, "error",
                                                                          error=FloatingPointError("not finite"))])
            with pytest.raises(FloatingPointError, match="not finite"):
                chat(model, tokenizer, "Why?", max_new_tokens=4)
        assert chat(model, tokenizer, "Why?", max_new_tokens=4) == before


class ScriptedEngine:
    """An engine that says what it was told, a byte a step."""

    has_work = False

    def __init__(self, said):
        self.said, self.cancelled = [*said], []

    def add(self, request):
        self.request = request
        return 0

    def cancel(self, number):
        self.cancelled.append(number)

    def step(self):
        if self.cancelled:
            return [Output(0, None, "cancelled")]
        return [Output(0, self.said.pop(0), "length" if not self.said else None)]


class TestScripted:
    """What becomes of an answer whose bytes are known."""

    @pytest.fixture
    def say(self, tokenizer):
        def texts(said, query="q", **generation):
            config = QwenConfig(chat_format="chatml", seq_length=8192)
            self.engine = ScriptedEngine(said if isinstance(said, list) else said.encode())
            model = SimpleNamespace(config=config, chat_engine=self.engine)
            return list(chat_stream(model, tokenizer, query, **generation))
        return texts

    def test_no_text_ends_within_a_character(self, say):
        assert say("né 👩‍🚀") == ["n", "né", "né 👩", "né 👩\u200d", "né 👩\u200d🚀"]

    def test_white_space_around_an_answer_is_not_its_text(self, say):
        assert say("\n a  b \n") == ["", "a", "a  b"]

    def test_a_stop_string_is_never_seen_and_ends_the_request(self, say):
        assert say("ab Human: c", stop_words=["Human:"]) == ["a", "ab"]
        assert self.engine.cancelled == [0] and self.engine.said == [*b" c"]

    def test_chatmls_stop_words_end_an_answer_whatever_others_are_given(self, say, tokenizer):
        for stop in STOPS:
            assert say([*b"ab", stop, *b"cd"], stop_words_ids=[[1]])[-1] == "ab"
        assert set(self.engine.request.settings.stop_words_ids) >= {(1,), (256,), (257,), (258,)}

    def test_a_text_that_is_continued_keeps_its_white_space_and_ends_at_no_words_but_those_given(self, say, tokenizer):
        texts = say([*b"\n a Human: b ", tokenizer.eod_id, *b"c"], query="x<|im_end|>", chat_format="raw")
        assert texts[0] == "\n" and texts[-1] == "\n a Human: b "
        assert self.engine.request.prompt == list(b"x<|im_end|>"), "control tokens in a text are text"
        assert say("ab Human: c", chat_format="raw", stop_words=["Human:"])[-1] == "ab "

    def test_an_empty_answer_is_a_text_too(self, say, tokenizer):
        assert say([tokenizer.im_end_id, 65]) == [""]


class TestBaseModels:
    @pytest.fixture
    def base(self, model, monkeypatch):
        monkeypatch.setattr(model.config, "chat_format", "raw")
        return model

    @pytest.mark.parametrize("ask", [chat, chat_stream, lambda *args: chat_batch(*args[:2], [args[2]])])
    def test_a_base_model_says_that_it_is_one(self, base, tokenizer, ask):
        with pytest.raises(ValueError, match=r"chat_format: expected 'chatml', found 'raw': .* base model.*"
                                             r"chat_format='raw'"):
            ask(base, tokenizer, "Why?")

    def test_it_continues_a_text_where_that_is_asked_for(self, base, tokenizer, answer):
        ids, _ = answer(tokenizer.encode("Once upon"))
        response, history = chat(base, tokenizer, "Once upon", DIALOGUE, chat_format="raw", max_new_tokens=16)
        assert response == tokenizer.decode(ids, skip_special_tokens=True)
        assert history == [*DIALOGUE, ("Once upon", response)]

    def test_it_chats_where_the_caller_says_that_it_is_a_chat_model(self, base, tokenizer, answer):
        _, expected = answer(make_context(tokenizer, "Why?")[1])
        assert chat(base, tokenizer, "Why?", chat_format="chatml", max_new_tokens=16)[0] == expected

    def test_a_generation_config_beside_the_checkpoint_decides(self, tmp_path):
        config = QwenConfig(checkpoint_name_or_path=str(tmp_path))
        (tmp_path / "generation_config.json").write_text('{"chat_format": "chatml", "top_p": 0.5}')
        assert chat_settings(config).top_p == 0.5

    def test_a_yaml_of_the_first_port_which_does_not_say_is_taken_for_a_chat_models(self):
        config = QwenConfig.from_llama_config(LlamaConfig(num_hidden_layers=2))
        assert chat_settings(config).chat_format == chat_settings(LlamaConfig()).chat_format == "chatml"

    def test_settings_at_hand_are_taken(self):
        settings = GenerationSettings(chat_format="chatml", top_p=0.3)
        assert chat_settings(None, settings, top_k=3) == settings.override(top_k=3)
        with pytest.raises(ValueError, match="chat_format"):
            chat_settings(None, GenerationSettings())


class TestLimits:
    @pytest.mark.parametrize("seed", range(10))
    def test_any_history_leaves_room_for_an_answer(self, model, tokenizer, seed):
        chance = random.Random(seed)
        history = [("a" * chance.randint(0, 60), "b" * chance.randint(0, 60)) for _ in range(chance.randint(0, 30))]
        *_, reply = stream_reply(model, tokenizer, "Why?", history, "S", max_new_tokens=10**6)
        assert reply.finish_reason == "stop" or reply.tokens >= 256 // 4

    def test_a_question_that_the_model_can_not_hold_is_refused_before_any_work(self, model, tokenizer):
        with pytest.raises(ValueError, match=r"query: it has \d+ tokens with the system message, and the model "
                                             r"holds 256 "):
            chat_stream(model, tokenizer, "x" * 250)
        with pytest.raises(ValueError, match="conversation 1: query: it has"):
            chat_batch(model, tokenizer, ["short", "x" * 250])

    def test_a_question_that_leaves_little_room_gets_a_short_answer(self, model, tokenizer):
        fixed = len(make_context(tokenizer, "", None, "S")[1])
        *_, reply = stream_reply(model, tokenizer, "x" * (256 - fixed - 3), system="S")
        assert (reply.tokens, reply.finish_reason) == (3, "length")

    @pytest.mark.parametrize("arguments, said", [
        ({"top_p": 3}, "top_p: expected"), ({"beams": 4}, "beams: no such setting"),
        ({"stream": True}, "stream: no such"),
        ({"history": ["only a query"]}, r"history: expected \(query, response\) pairs"),
        ({"query": ["a", "b"]}, "query: expected a text, found list; chat_batch takes several")])
    def test_what_can_not_be_is_said_at_once(self, model, tokenizer, arguments, said):
        with pytest.raises(ValueError, match=said):
            chat_stream(model, tokenizer, **{"query": "q", **arguments})

    @pytest.mark.parametrize("name, value", [
        ("queries", "hello"), ("queries", b"hello"), ("queries", {"a": 1}), ("queries", {"a"}), ("queries", None),
        ("queries", 7), ("histories", "ab"), ("histories", {0: []}), ("system", b"ab"), ("system", {"a": 1, "b": 2}),
        ("system", 7), ("system", None)])
    def test_a_text_is_no_list_of_its_letters(self, model, tokenizer, name, value):
        arguments = {"queries": ["a", "b"], name: value}
        with pytest.raises(ValueError, match=f"^{name}: expected a list of .*, found "):
            chat_batch(model, tokenizer, **arguments)

    def test_a_batch_may_be_any_sequence_of_texts(self, model, tokenizer):
        expected = chat_batch(model, tokenizer, ["a", "b"], max_new_tokens=2)
        for queries in (("a", "b"), iter(["a", "b"]), np.array(["a", "b"])):
            assert chat_batch(model, tokenizer, queries, max_new_tokens=2) == expected

    @pytest.mark.parametrize("arguments, said", [
        ({"query": b"a"}, "query: expected a text, found bytes"), ({"system": None}, "system: expected a text, found"),
        ({"system": ["S"]}, "system: expected a text"), ({"history": "ab"}, "history: expected"),
        ({"history": {"a": "b"}}, "history: expected"), ({"history": 7}, "history: expected"),
        ({"history": [("a", None)]}, "message 3: expected"), ({"history": [(1, "b")]}, "message 2: expected"),
        ({"stop_words": "Human:"}, "stop_words: expected a list of strings"), ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"topp": 0.5}, r"topp: no such setting, .*\(did you mean top_p\?\)")])
    def test_what_is_of_another_kind_is_refused_by_name(self, model, tokenizer, arguments, said):
        with pytest.raises(ValueError, match=said):
            chat(model, tokenizer, **{"query": "q", **arguments})

    def test_a_temperature_of_0_is_greedy(self, model, tokenizer):
        greedy = chat(model, tokenizer, "Why?", max_new_tokens=8)
        assert chat(model, tokenizer, "Why?", do_sample=True, temperature=0, max_new_tokens=8) == greedy

    @pytest.mark.parametrize("arguments", [{"histories": [None]}, {"system": ["S", "S", "S"]}])
    def test_a_batch_wants_one_of_each(self, model, tokenizer, arguments):
        with pytest.raises(ValueError, match=r"expected 2, one for each query, found (1|3)"):
            chat_batch(model, tokenizer, ["a", "b"], **arguments)
