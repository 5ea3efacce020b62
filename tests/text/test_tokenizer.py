"""QwenTokenizer gives the ids of the reference, refuses broken vocabularies and fits MindFormers."""
import base64
import copy
import importlib.util
import json
import logging
import pickle
import random
import re
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindformers.models.build_tokenizer import build_tokenizer
from mindformers.tools.register import MindFormerConfig

from helpers import DATA
from qwen_mindspore.text import tokenizer as tokenizer_module
from qwen_mindspore.text.chatml import ChatMLTokenizer
from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file, load_vocab

GOLDEN = json.loads((DATA / "tokenizer/cases.json").read_text(encoding="utf-8"))
CASES = pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: repr(case["text"][:20]))

SMALL_TOKENS = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello"]
SMALL_SIZE = len(SMALL_TOKENS) + 208


def vocab_lines(tokens):
    return [b"%s %d" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]


def write_lines(path, lines):
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="session")
def official():
    """The official vocabulary, which the package dashscope brings."""
    package = Path(importlib.util.find_spec("dashscope").origin).parent
    return package / "resources/qwen.tiktoken"


@pytest.fixture(scope="session")
def tokenizer(official):
    return QwenTokenizer(official)


@pytest.fixture(scope="session")
def small_vocab(tmp_path_factory):
    """260 ordinary tokens: every byte, and `hello` with the merges that lead to it."""
    return write_lines(tmp_path_factory.mktemp("small") / "qwen.tiktoken", vocab_lines(SMALL_TOKENS))


@pytest.fixture(scope="session")
def small(small_vocab):
    return QwenTokenizer(small_vocab)


class TestIdsOfTheReference:
    @CASES
    def test_text_with_control_tokens(self, tokenizer, case):
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        assert tokenizer.encode(case["text"]) == case["ids"]

    @CASES
    def test_control_tokens_as_text(self, tokenizer, case):
        assert tokenizer(case["text"], allowed_special=set())["input_ids"] == case["ids_no_special"]
        assert tokenizer.encode(case["text"], allowed_special=set()) == case["ids_no_special"]

    @CASES
    def test_decoding(self, tokenizer, case):
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]

    @pytest.mark.parametrize("case", GOLDEN["decode_cases"], ids=lambda case: str(case["ids"]))
    def test_decoding_of_pieces(self, tokenizer, case):
        assert tokenizer.decode(case["ids"]) == case["decoded"]
        skipped = case.get("decoded_skip", case["decoded"])
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == skipped

    def test_control_tokens_follow_the_last_rank(self, tokenizer):
        assert GOLDEN["special"].items() <= tokenizer.special_tokens.items()
        assert (tokenizer.eod_id, tokenizer.im_start_id, tokenizer.im_end_id) == (151643, 151644, 151645)
        assert tokenizer.vocab_size == len(tokenizer) == len(tokenizer.get_vocab()) == 151851

    def test_a_smaller_vocabulary_shifts_them(self, small):
        assert (small.eod_id, small.im_start_id, small.im_end_id) == (260, 261, 262)
        assert small.special_tokens["<|extra_204|>"] == SMALL_SIZE - 1
        assert len(small) == SMALL_SIZE
        assert small.encode("<|im_start|>hello") == [261, 259]


class TestEncoding:
    def test_a_disallowed_control_token_is_refused(self, small):
        with pytest.raises(ValueError, match="im_end"):
            small.encode("a<|im_end|>", allowed_special=set(), disallowed_special="all")

    def test_only_allowed_control_tokens_are_parsed(self, small):
        ids = small.encode("<|im_end|><|im_start|>", allowed_special={"<|im_end|>"})
        assert ids[0] == small.im_end_id
        assert small.im_start_id not in ids

    def test_every_digit_is_a_token_whatever_the_vocabulary_could_merge(self, tmp_path):
        path = write_lines(tmp_path / "v", vocab_lines([*SMALL_TOKENS, b"12"]))
        assert QwenTokenizer(path).tokenize("12") == [b"1", b"2"]

    @pytest.mark.parametrize("form", ["{}", "\n{}x", "a{}<|im_end|>"])
    def test_a_million_spaces_are_one_word(self, tokenizer, form):
        longest = tokenizer.convert_tokens_to_ids(b" " * 128)
        text = form.replace("{}", " " * 1_280_000)
        ids = tokenizer.encode(text)
        # Before a letter the last space goes with that, which leaves 127 to smaller tokens.
        assert ids.count(longest) == 10_000 - form.endswith("x") and len(ids) < 10_010
        assert tokenizer.decode(ids) == text

    @pytest.mark.parametrize("allowed", ["all", set(), {"<|im_end|>"}], ids=str)
    def test_long_white_space_is_cut_as_tiktoken_cuts_it(self, tmp_path, monkeypatch, allowed):
        merged = [*(b" " * count for count in (2, 3, 4)), b"\n\n", b" \n", b"\t\t", b" a", b"\n\n\n"]
        tokens = [*SMALL_TOKENS, *merged]
        other = QwenTokenizer(write_lines(tmp_path / "v", vocab_lines(tokens)))
        monkeypatch.setattr(tokenizer_module, "LONG_SPACE", re.compile(
            tokenizer_module.LONG_SPACE.pattern.replace("100000", "3")))
        drawn = random.Random(0)
        pieces = ["   ", "  ", " ", "\t", "\v", "\f", "\u3000", "\x85", "\xa0", "\u2028", "\x1c", "\u200b", "\n", "\r",
                  "a", "1", ".", "!", "é", "中", "<|im_end|>", "<|endoftext|>"]
        for _ in range(3000):
            text = "".join(drawn.choices(pieces, k=drawn.randint(1, 14)))
            assert other.encode(text, allowed_special=allowed) == other.tokenizer.encode(
                text, allowed_special=allowed, disallowed_special=()), repr(text)

    @pytest.mark.parametrize("character", "a1!中\n\t\r\0\ufeff\u3000😀")
    def test_many_of_any_character_take_no_time_to_speak_of(self, tokenizer, character):
        text = character * 200_000
        start = time.perf_counter()
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert time.perf_counter() - start < 20, "half a second on two idle cores"

    def test_a_misspelt_option_is_not_ignored(self, small):
        with pytest.raises(TypeError, match="alowed_special"):
            small("hello", alowed_special=set())

    def test_a_lone_surrogate_becomes_a_replacement_character(self, small):
        assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"

    def test_two_surrogates_that_belong_together_are_one_character(self, small):
        assert small.decode(small.encode("\ud83d\ude00")) == "😀"

    @pytest.mark.parametrize("text", [None, 5, b"bytes"])
    def test_what_is_not_text_is_refused(self, small, text):
        with pytest.raises(ValueError, match="text"):
            small(text)

    def test_tokens_are_bytes_and_control_tokens_str(self, small):
        tokens = small.tokenize("hello é<|im_end|>")
        assert tokens == [b"hello", b" ", b"\xc3", b"\xa9", "<|im_end|>"]
        ids = small.convert_tokens_to_ids(tokens)
        assert ids == small.encode("hello é<|im_end|>")
        assert small.convert_ids_to_tokens(ids) == tokens
        assert small.convert_ids_to_tokens(np.array(ids), skip_special_tokens=True) == tokens[:-1]
        assert small.convert_tokens_to_string(tokens) == "hello é<|im_end|>"

    def test_one_token_or_id_converts_to_one(self, small):
        assert small.convert_tokens_to_ids(b"hello") == small.get_vocab()[b"hello"] == 259
        assert small.convert_tokens_to_ids("<|im_end|>") == small.im_end_id
        assert small.convert_ids_to_tokens(259) == b"hello"

    @pytest.mark.parametrize("token", ["hello", b"unheard", "<|extra_205|>"])
    def test_an_unknown_token_has_no_id(self, small, token):
        with pytest.raises(ValueError, match=r"token .*: expected bytes of the vocabulary or the name"):
            small.convert_tokens_to_ids([token])

    @pytest.mark.parametrize("index", [-1, SMALL_SIZE])
    def test_an_unknown_id_has_no_token(self, small, index):
        with pytest.raises(ValueError, match=rf"token id {index}: expected 0 to 467 .* 468 tokens"):
            small.convert_ids_to_tokens([index])


class TestCalling:
    def test_nothing_is_added_around_the_text(self, small):
        assert small("hello", add_special_tokens=True) == small("hello", add_special_tokens=False)
        assert small("hello")["input_ids"] == [259]

    def test_padding_to_the_longest(self, small):
        batch = small(["hello", "hellohe"], padding=True)
        assert batch["input_ids"] == [[259, small.eod_id], [259, 256]]
        assert batch["attention_mask"] == [[1, 0], [1, 1]]

    def test_padding_on_the_left_with_another_token(self, small_vocab):
        small = QwenTokenizer(small_vocab, padding_side="left", pad_token="<|extra_0|>")
        batch = small("hello", padding="max_length", max_length=3)
        assert batch["input_ids"] == [263, 263, 259]
        assert batch["attention_mask"] == [0, 0, 1]

    def test_an_empty_text_in_a_batch(self, small):
        batch = small(["", "hello"], padding=True)
        assert batch["input_ids"] == [[small.eod_id], [259]]
        assert batch["attention_mask"] == [[0], [1]]

    def test_truncation(self, small):
        assert small("hellohell", truncation=True, max_length=1)["input_ids"] == [259]

    def test_the_models_length_is_the_default_length(self, small_vocab):
        small = QwenTokenizer(small_vocab, model_max_length=2)
        assert small("hello" * 9, truncation=True)["input_ids"] == [259, 259]
        assert len(small("hello", padding="max_length")["input_ids"]) == 2

    @pytest.mark.parametrize(("kind", "type_"), [("np", np.ndarray), ("ms", ms.Tensor)])
    def test_arrays(self, small, kind, type_):
        ids = small(["hello", "he"], padding="max_length", max_length=4, return_tensors=kind)["input_ids"]
        assert isinstance(ids, type_)
        assert ids.shape == (2, 4)


class TestDecoding:
    @pytest.mark.parametrize("ids", [
        [259, 256], (259, 256), np.array([259, 256]), ms.Tensor([259, 256]), [np.int64(259), np.int32(256)],
        torch.tensor([259, 256]), [torch.tensor(259), ms.Tensor(256)], [259.0, 256.0], np.array([259.0, 256.0]),
        torch.tensor([259, 256], dtype=torch.int32), np.array([259, 256], np.uint16),
    ], ids=["list", "tuple", "array", "Tensor", "numpy ints", "torch", "Tensors", "whole floats", "float array",
            "int32", "uint16"])
    def test_a_sequence_gives_a_str(self, small, ids):
        assert small.decode(ids) == "hellohe"

    @pytest.mark.parametrize("index", [259, np.int64(259), ms.Tensor(259), torch.tensor(259), np.array(259)],
                             ids=lambda it: type(it).__module__)
    def test_a_single_id_gives_a_str(self, small, index):
        assert small.decode(index) == "hello"
        assert small.decode(0) == "\0"

    @pytest.mark.parametrize("batch", [
        [[259, 260], [256, 257]], [np.array([259, 260]), np.array([256, 257])],
        np.array([[259, 260], [256, 257]]), ms.Tensor([[259, 260], [256, 257]]),
        torch.tensor([[259, 260], [256, 257]]), (torch.tensor([259, 260]), [256, 257]),
    ], ids=["lists", "list of arrays", "2-D array", "2-D Tensor", "2-D torch", "rows of several kinds"])
    def test_a_batch_gives_a_list(self, small, batch):
        assert small.decode(batch, skip_special_tokens=True) == ["hello", "hell"]
        assert small.batch_decode(batch) == ["hello<|endoftext|>", "hell"]

    def test_nothing_decodes_to_nothing(self, small):
        assert small.decode([]) == ""
        assert small.decode([[], [259]]) == ["", "hello"]

    def test_a_row_of_the_model_beyond_the_vocabulary_does_not_cost_the_answer(self, small):
        ids = [259, SMALL_SIZE, 256]
        assert small.decode(ids) == "hello\ufffdhe"
        assert small.decode(ids, errors="ignore") == "hellohe"
        assert small.decode(ids, skip_special_tokens=True) == "hellohe"
        with pytest.raises(UnicodeDecodeError):
            small.decode(ids, errors="strict")

    @pytest.mark.parametrize("ids", [None, "hello", b"hello", [None], ["259"], [1.5], float("nan"), True, [True], {},
                                     {"input_ids": [259]}, [[259], 256], [[[259]]], torch.tensor([1.5]),
                                     np.array([["a"]]), object()], ids=repr)
    def test_what_is_no_id_is_refused_in_one_line(self, small, ids):
        for decode in (small.decode, lambda ids: small.decode(ids, skip_special_tokens=True)):
            with pytest.raises(ValueError, match=r"^token ids?: expected .*, found [^\n]+$"):
                decode(ids)

    @pytest.mark.parametrize("index", [10**6, 10**30])
    def test_an_id_far_beyond_the_vocabulary_is_of_another_model(self, small, index):
        with pytest.raises(ValueError, match=rf"token id {index}: expected 0 to 467, .*the tokenizer of that model\?"):
            small.decode([259, index])

    def test_tokens_of_a_batch_are_not_given_in_one_list(self, small):
        assert small.convert_ids_to_tokens(torch.tensor([259, 256])) == [b"hello", b"he"]
        with pytest.raises(ValueError, match="token ids: expected one id or a list of them, found lists in a list"):
            small.convert_ids_to_tokens([[259]])

    @pytest.mark.parametrize("skip", [False, True])
    def test_a_negative_id_is_refused(self, small, skip):
        with pytest.raises(ValueError, match="token id -100: expected 0 to 467"):
            small.decode([259, -100], skip_special_tokens=skip)

    def test_errors_of_the_constructor_hold_for_broken_characters(self, small_vocab, small):
        half = "é".encode()[:1]
        assert small.decode(small.convert_tokens_to_ids([half])) == "\ufffd"
        ignoring = QwenTokenizer(small_vocab, errors="ignore")
        assert ignoring.decode(ignoring.convert_tokens_to_ids([half])) == ""
        assert ignoring.convert_tokens_to_string([half]) == ""


class TestSpecialTokens:
    def test_padding_and_end_are_endoftext_unless_said_otherwise(self, small_vocab, small):
        assert small.pad_token_id == small.eos_token_id == small.eod_id
        chat = QwenTokenizer(small_vocab, eos_token="<|im_end|>", pad_token="<|extra_204|>")
        assert (chat.eos_token_id, chat.pad_token_id) == (chat.im_end_id, SMALL_SIZE - 1)

    def test_llamas_tokens_of_an_old_yaml_fall_back_with_a_warning(self, small_vocab, caplog, capsys):
        config = MindFormerConfig(processor={"tokenizer": {
            "type": "QwenTokenizer", "auto_register": "qwen_tokenizer.QwenTokenizer", "add_bos_token": False,
            "vocab_file": str(small_vocab), "model_max_length": 8192,
            "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|extra_0|>"}})
        with caplog.at_level(logging.WARNING):
            tokenizer = QwenTokenizer(**config.processor.tokenizer)
        assert "unk_token '<unk>'" in caplog.text
        assert "pad_token" not in caplog.text
        assert capsys.readouterr().out == ""
        ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        assert ids == (260, 260, 260, 263)
        assert tokenizer.model_max_length == 8192
        assert len(tokenizer) == SMALL_SIZE
        assert tokenizer.encode("<s>") == [ord("<"), ord("s"), ord(">")]

    @pytest.mark.parametrize("add", [
        lambda tokenizer: tokenizer.add_tokens(["new"]),
        lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["new"]}),
        lambda tokenizer: QwenTokenizer(tokenizer.vocab_file, additional_special_tokens=["new"]),
    ], ids=["add_tokens", "add_special_tokens", "constructor"])
    def test_the_vocabulary_cannot_grow(self, small, add):
        with pytest.raises(ValueError, match="'new': Qwen's vocabulary is fixed"):
            add(copy.deepcopy(small))

    @pytest.mark.parametrize("change, said", [
        (lambda it: it.add_special_tokens({"pad_token": "[PAD]"}), "cannot add the control token '\\[PAD\\]'"),
        (lambda it: it.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "[PAD]"}), "'\\[PAD\\]'"),
        (lambda it: it.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["x"]}),
         "cannot add the control token 'x'"),
        (lambda it: it.add_special_tokens({"pad_token": "<|extra_0|>", "padding_token": "x"}),
         "padding_token: no such role of a token, expected one of bos_token, .*pad_token"),
        (lambda it: it.add_special_tokens({"pad_token": 7}), "cannot add the control token '7'"),
        (lambda it: setattr(it, "pad_token", "[PAD]"), "'\\[PAD\\]'"),
        (lambda it: setattr(it, "pad_token_id", 259), "pad_token_id: expected the id of a control token, 260 to 467"),
        (lambda it: setattr(it, "eos_token_id", 10**6), "eos_token_id: expected the id of a control token"),
        (lambda it: setattr(it, "additional_special_tokens", ["x"]), "'x'"),
    ])
    def test_a_role_for_a_token_that_is_not_there_is_refused_and_nothing_changes(self, small_vocab, change, said):
        tokenizer = QwenTokenizer(small_vocab)
        with pytest.raises(ValueError, match=said):
            change(tokenizer)
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|endoftext|>")
        assert tokenizer.special_tokens_map == QwenTokenizer(small_vocab).special_tokens_map
        assert tokenizer(["hello", "hellohe"], padding=True)["input_ids"] == [[259, 260], [259, 256]]

    def test_a_control_token_takes_a_role(self, small_vocab):
        tokenizer = QwenTokenizer(small_vocab)
        assert tokenizer.add_special_tokens({"pad_token": "<|extra_0|>", "eos_token": "<|im_end|>"}) == 0
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (263, 262, SMALL_SIZE)
        tokenizer.pad_token_id, tokenizer.bos_token = 264, None
        assert (tokenizer.pad_token, tokenizer.bos_token) == ("<|extra_1|>", None)
        assert tokenizer(["hello", "hellohe"], padding=True)["input_ids"] == [[259, 264], [259, 256]]

    def test_adding_what_is_there_adds_nothing(self, small):
        assert small.add_tokens(["<|im_end|>"], special_tokens=True) == 0
        assert len(small) == SMALL_SIZE


class TestFindingTheVocabulary:
    def test_a_file_or_its_folder(self, small_vocab):
        assert find_vocab_file(small_vocab) == find_vocab_file(small_vocab.parent) == str(small_vocab)

    @pytest.mark.parametrize("name", ["missing.tiktoken", "", "folder"])
    def test_what_is_given_and_missing_is_never_replaced(self, tmp_path, small_vocab, name, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        with pytest.raises(FileNotFoundError, match=rf"expected {name}.*qwen.tiktoken"):
            find_vocab_file(name, beside=small_vocab)

    def test_beside_a_checkpoint_or_in_its_folder(self, small_vocab):
        assert find_vocab_file(beside=small_vocab.parent / "model.safetensors") == str(small_vocab)
        assert find_vocab_file(beside=small_vocab.parent) == str(small_vocab)

    def test_else_the_one_of_dashscope_without_importing_it(self, tmp_path, official, monkeypatch):
        monkeypatch.delitem(sys.modules, "dashscope", raising=False)
        assert find_vocab_file() == find_vocab_file(beside=tmp_path) == str(official)
        assert "dashscope" not in sys.modules

    def test_else_one_line_that_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(FileNotFoundError, match="pip install dashscope") as error:
            find_vocab_file(beside=tmp_path)
        assert str(tmp_path / "qwen.tiktoken") in str(error.value)
        assert "\n" not in str(error.value)


class TestLoadingTheVocabulary:
    def test_the_official_one_loads_in_well_under_a_second(self, official):
        start = time.perf_counter()
        ranks = load_vocab(official)
        # 0.15 s on two cores; the margin is for a busy machine.
        assert time.perf_counter() - start < 1
        assert len(ranks) == 151643

    def test_empty_lines_and_windows_line_ends_do_no_harm(self, tmp_path, small_vocab):
        path = tmp_path / "qwen.tiktoken"
        path.write_bytes(b"\r\n" + small_vocab.read_bytes().replace(b"\n", b"\r\n"))
        assert load_vocab(path) == load_vocab(small_vocab)

    @pytest.mark.parametrize(("line", "found"), [
        (b"aGVsbG8=", "'aGVsbG8='"), (b"aGVsb", "'aGVsb'"), (b"aGVsb 260", "'aGVsb 260'"),
        (b"aG*Vs 260", r"'aG\*Vs 260'"), (b"== 260", "'== 260'"), (b"aGVs 26x", "'aGVs 26x'"),
        (b"aGVs -1", "'aGVs -1'"), (b"aGVs 2.0", "'aGVs 2.0'"), (b" 260", "' 260'"),
        (b"aGVs 260 1", "'aGVs 260 1'"),
        (b"\xff\xfe 260", r"'.*xff"), (b"x" * 99, rf"'{'x' * 40}\.\.\.'"),
    ])
    def test_a_line_of_another_form_is_named(self, tmp_path, line, found):
        path = write_lines(tmp_path / "v", [*vocab_lines(SMALL_TOKENS), line])
        with pytest.raises(ValueError, match=rf"v, line 261: expected 'BASE64 RANK', found {found}"):
            load_vocab(path)

    def test_a_download_that_broke_off_within_a_rank_is_caught(self, tmp_path, official):
        path = tmp_path / "v"
        path.write_bytes(official.read_bytes()[:-2])
        with pytest.raises(ValueError, match="v, line 151643: expected rank 151642 .*, found 15164$"):
            load_vocab(path)

    @pytest.mark.parametrize("rank", [259, 0, 261])
    def test_a_rank_twice_or_left_out(self, tmp_path, rank):
        path = write_lines(tmp_path / "v", [*vocab_lines(SMALL_TOKENS), b"aGVs %d" % rank])
        with pytest.raises(ValueError, match=rf"line 261: expected rank 260 .*, found {rank}$"):
            load_vocab(path)

    def test_a_token_twice(self, tmp_path):
        path = write_lines(tmp_path / "v", vocab_lines([*SMALL_TOKENS, b"he"]))
        with pytest.raises(ValueError, match="line 261: expected a new token, found that of rank 256 again"):
            load_vocab(path)

    @pytest.mark.parametrize("content", [b"", b"\n\n"])
    def test_an_empty_file(self, tmp_path, content):
        path = tmp_path / "v"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="found an empty file"):
            load_vocab(path)

    def test_a_byte_without_a_token(self, tmp_path):
        path = write_lines(tmp_path / "v", vocab_lines([token for token in SMALL_TOKENS if token != b"\x80"]))
        with pytest.raises(ValueError, match="v: expected a token for every byte, found none for 0x80"):
            QwenTokenizer(path)


class TestSaving:
    def test_the_vocabulary_is_written_as_it_was(self, tmp_path, tokenizer, official):
        paths = tokenizer.save_vocabulary(tmp_path / "new", filename_prefix="my")
        assert paths == (str(tmp_path / "new/my-qwen.tiktoken"),)
        assert Path(paths[0]).read_bytes() == official.read_bytes()
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["my-qwen.tiktoken"]

    def test_a_failure_leaves_the_old_file(self, tmp_path, small, monkeypatch):
        old = tmp_path / "qwen.tiktoken"
        old.write_bytes(b"old")

        def disk_full(path, data):
            raise OSError("no space left")

        monkeypatch.setattr(Path, "write_bytes", disk_full)
        with pytest.raises(OSError, match="no space left"):
            small.save_vocabulary(tmp_path)
        assert list(tmp_path.iterdir()) == [old]
        assert old.read_bytes() == b"old"

    @pytest.mark.parametrize(
        "how", [{}, {"save_json": True}, {"file_format": "json"}], ids=["yaml", "hf", "json"])
    def test_a_saved_tokenizer_comes_back(self, tmp_path, small_vocab, how):
        QwenTokenizer(small_vocab, errors="ignore", eos_token="<|im_end|>", pad_token="<|extra_1|>",
                      padding_side="left", model_max_length=99).save_pretrained(str(tmp_path), **how)
        again = QwenTokenizer.from_pretrained(str(tmp_path))
        assert again.vocab_file == str(tmp_path / "qwen.tiktoken")
        assert again.get_vocab() == QwenTokenizer(small_vocab).get_vocab()
        assert (again.errors, again.eos_token, again.pad_token) == ("ignore", "<|im_end|>", "<|extra_1|>")
        assert (again.padding_side, again.model_max_length) == ("left", 99)

    def test_the_folder_of_a_published_model_loads(self, tmp_path, small_vocab):
        (tmp_path / "qwen.tiktoken").write_bytes(small_vocab.read_bytes())
        (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({
            "model_max_length": 8192, "tokenizer_class": "QWenTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}))
        tokenizer = QwenTokenizer.from_pretrained(str(tmp_path))
        assert tokenizer.model_max_length == 8192
        assert tokenizer.encode("hello") == [259]

    @pytest.mark.parametrize("kind", [QwenTokenizer, ChatMLTokenizer])
    def test_a_converted_folder_or_a_vocabulary_loads(self, tmp_path, small_vocab, kind):
        (tmp_path / "qwen.tiktoken").write_bytes(small_vocab.read_bytes())
        (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
        for place in (tmp_path, str(tmp_path), tmp_path / "qwen.tiktoken"):
            tokenizer = kind.from_pretrained(place, padding_side="left", trust_remote_code=True)
            assert type(tokenizer) is kind and tokenizer.encode("hello") == [259]
            assert (tokenizer.padding_side, tokenizer.vocab_file) == ("left", str(tmp_path / "qwen.tiktoken"))

    def test_a_folder_without_a_vocabulary_is_named(self, tmp_path):
        for place in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(FileNotFoundError, match=f"Qwen's vocabulary: expected {place}"):
                QwenTokenizer.from_pretrained(place)

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))],
                             ids=["deepcopy", "pickle"])
    def test_copies_encode_alike(self, small, clone):
        other = clone(small)
        assert other.encode("hello<|im_end|>") == small.encode("hello<|im_end|>") == [259, 262]

    def test_a_yaml_builds_it(self, small_vocab):
        tokenizer = build_tokenizer(MindFormerConfig(type="QwenTokenizer", vocab_file=str(small_vocab)))
        assert isinstance(tokenizer, QwenTokenizer)
