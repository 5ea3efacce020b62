"""Text grows with its tokens: whole characters only, nothing of a stop word, and in the end what decode gives."""
import importlib.util
import random
from pathlib import Path

import pytest

from qwen_mindspore.text.stream import TextStream
from qwen_mindspore.text.tokenizer import QwenTokenizer

TEXT = "Hello, 世界! 👩‍🚀 naïve\n\n\tconsole.log('äöü')  12345 한국어 עברית 🇫🇷"


@pytest.fixture(scope="module")
def tokenizer():
    return QwenTokenizer(Path(importlib.util.find_spec("dashscope").origin).parent / "resources/qwen.tiktoken")


@pytest.fixture(scope="module")
def byte_tokenizer(tiny_hf):
    """Every byte is a token, so every character beyond ASCII is several."""
    return QwenTokenizer(str(tiny_hf))


def puts(stream, ids):
    """What each put gave, and end() behind it."""
    pieces = [stream.put(token) for token in ids]
    return [*pieces, stream.end()]


class TestCharacters:
    def test_a_character_of_several_tokens_comes_whole(self, byte_tokenizer):
        assert puts(TextStream(byte_tokenizer), "é世👩".encode()) == ["", "é", "", "", "世", "", "", "", "👩", ""]

    @pytest.mark.parametrize("tail", [b"\xe4", b"\xe4\xb8", b"\xf0\x9f\x91", b"\xff", b"\x80"])
    def test_what_never_becomes_a_character_is_replaced_as_decode_does(self, byte_tokenizer, tail):
        ids = list(b"ab" + tail)
        assert "".join(puts(TextStream(byte_tokenizer), ids)) == byte_tokenizer.decode(ids) == "ab\ufffd"

    def test_a_broken_character_comes_with_what_follows_it(self, byte_tokenizer):
        assert puts(TextStream(byte_tokenizer), b"\xe4\xb8x") == ["", "", "\ufffdx", ""]

    def test_errors_are_those_of_the_tokenizer(self, tiny_hf):
        ignoring = QwenTokenizer(str(tiny_hf), errors="ignore")
        assert "".join(puts(TextStream(ignoring), b"a\xffb\xe4")) == "ab"

    def test_control_tokens_are_left_out_even_within_a_character(self, byte_tokenizer):
        ids = [*b"a\xc3", byte_tokenizer.im_start_id, 0xa9, byte_tokenizer.eod_id]
        assert "".join(puts(TextStream(byte_tokenizer), ids)) == "aé"

    def test_an_id_beyond_the_vocabulary_counts_as_it_does_in_decode(self, byte_tokenizer):
        ids = [*b"a", 500, *b"b"]
        expected = byte_tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(puts(TextStream(byte_tokenizer), ids)) == expected

    @pytest.mark.parametrize("seed", range(20))
    def test_any_ids_give_what_decode_gives(self, tokenizer, seed):
        chance = random.Random(seed)
        ids = chance.choices(range(tokenizer.vocab_size + 80), k=200)
        ids += chance.choices(range(256), k=100) + tokenizer.encode(TEXT)
        stream = TextStream(tokenizer)
        pieces = puts(stream, ids)
        assert "".join(pieces) == stream.text == tokenizer.decode(ids, skip_special_tokens=True)

    def test_well_formed_text_has_no_broken_piece_and_waits_for_nothing(self, tokenizer):
        ids = tokenizer.encode(TEXT)
        stream = TextStream(tokenizer)
        for count, token in enumerate(ids, 1):
            assert "\ufffd" not in stream.put(token)
            whole = tokenizer.decode(ids[:count])
            assert stream.text == whole[:len(stream.text)] and set(whole[len(stream.text):]) <= {"\ufffd"}
        assert stream.text == TEXT and stream.end() == ""


class TestStopWords:
    def test_text_ends_before_a_stop_word_that_spans_tokens(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words=["Human:"])
        assert puts(stream, b"Yes. Human: more") == [*"Yes. ", *[""] * 12]
        assert stream.text == "Yes. " and stream.stopped

    def test_a_beginning_of_a_stop_word_is_held_back_until_it_is_none(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words=["Human:"])
        assert puts(stream, b"a Hum!b") == ["a", " ", "", "", "", "Hum!", "b", ""]
        assert not stream.stopped

    def test_an_unfinished_stop_word_is_text(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words=["Human:"])
        assert puts(stream, b"Human") == ["", "", "", "", "", "Human"]
        assert stream.text == "Human" and not stream.stopped

    def test_a_stop_word_that_begins_within_a_false_start_is_found(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words=["aab"])
        assert "".join(puts(stream, b"aaaab")) == "aa" and stream.stopped

    def test_the_one_complete_first_counts_however_the_text_is_cut_into_tokens(self, tokenizer, byte_tokenizer):
        words = ["c:\n", "stop c"]
        for one in (tokenizer, byte_tokenizer):
            stream = TextStream(one, stop_words=words)
            assert "".join(puts(stream, one.encode("don't stop c:\n"))) == "don't "

    def test_a_stop_word_of_many_byte_characters(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words=["世界"])
        assert "".join(puts(stream, "世人世界。".encode())) == "世人"

    def test_ids_stop_too_and_are_held_back_as_strings_are(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words_ids=[list(b"xyz")])
        assert puts(stream, b"xy-xyz?") == ["", "", "xy-", "", "", "", "", ""]
        assert stream.stopped

    def test_a_control_token_stops_by_its_id_and_by_its_name(self, byte_tokenizer):
        ids = [*b"a\xc3", byte_tokenizer.im_end_id, *b"b"]
        for stops in ({"stop_words_ids": [[byte_tokenizer.im_end_id]]}, {"stop_words": ["<|im_end|>"]}):
            stream = TextStream(byte_tokenizer, **stops)
            assert "".join(puts(stream, ids)) == "a\ufffd" and stream.stopped

    def test_text_held_back_for_a_string_comes_when_ids_end_it(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, stop_words=["end."], stop_words_ids=[[257]])
        assert puts(stream, [*b"my end", 257]) == [*"my ", "", "", "", "end", ""]

    def test_one_string_is_one_stop_word(self, byte_tokenizer):
        assert "".join(puts(TextStream(byte_tokenizer, "no"), b"n o no")) == "n o "

    @pytest.mark.parametrize("stops", [{"stop_words": [""]}, {"stop_words_ids": [[1], []]}])
    def test_an_empty_stop_word_is_refused(self, byte_tokenizer, stops):
        with pytest.raises(ValueError, match="stop_words"):
            TextStream(byte_tokenizer, **stops)

    @pytest.mark.parametrize("seed", range(50))
    def test_any_text_ends_where_a_search_of_the_whole_says(self, byte_tokenizer, seed):
        chance = random.Random(seed)
        text = "".join(chance.choices("abé", k=60))
        words = ["".join(chance.choices("abé", k=chance.randint(1, 6))) for _ in range(3)]
        ends = [(text.find(word) + len(word), text.find(word)) for word in words if word in text]
        stream = TextStream(byte_tokenizer, stop_words=words)
        for count, token in enumerate(text.encode(), 1):
            stream.put(token)
            # Nothing that a stop word takes back later may have been given out; nor may more wait than a word is long.
            assert text.startswith(stream.text)
            assert stream.stopped or len(stream.text.encode()) > count - max(len(word.encode()) for word in words) - 2
        stream.end()
        assert stream.text == (text[:min(ends)[1]] if ends else text)
        assert stream.stopped == bool(ends)


class TestLeastLength:
    def test_before_it_is_reached_a_stop_word_is_text_like_any_other(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, ["ab"])
        assert [stream.put(token, may_stop=place >= 4) for place, token in enumerate(b"abab")] == ["a", "b", "a", "b"]
        assert not stream.stopped and stream.put(ord("a")) == "" and stream.put(ord("b")) == ""
        assert stream.stopped and stream.text == "abab" and stream.stop_word == "ab"

    def test_a_character_that_is_begun_before_it_comes_whole_behind_it(self, byte_tokenizer):
        stream = TextStream(byte_tokenizer, ["x"])
        assert [stream.put(token, may_stop=place > 0) for place, token in enumerate("éx".encode())] == ["", "é", ""]
        assert stream.stopped


def test_the_stop_word_that_ended_a_text_is_told(byte_tokenizer):
    stream = TextStream(byte_tokenizer, ["cd", "bcd", "zz"], [[1, 2]])
    puts(stream, b"abcdef")
    assert (stream.text, stream.stop_word) == ("a", "bcd")
    stream = TextStream(byte_tokenizer, ["cd"], [[1, 2]])
    puts(stream, [97, 1, 2, 3])
    assert stream.stopped and stream.stop_word is None
