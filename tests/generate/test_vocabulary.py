"""A vocabulary that is not the model's: refused, by name, wherever a tokenizer and a model meet."""
import shutil
from types import SimpleNamespace

import pytest
from mindformers import pipeline

from qwen_mindspore.chat.chat import chat, chat_batch
from qwen_mindspore.generate.build import build_tokenizer, load_config
from qwen_mindspore.generate.by_name import write_config
from qwen_mindspore.generate.vocabulary import check_vocabulary
from qwen_mindspore.text.tokenizer import QwenTokenizer, find_vocab_file


def vocabulary(ends, tokens):
    """A stand-in for a tokenizer."""
    return SimpleNamespace(vocab_file="v", eod_id=ends, im_start_id=ends + 1, im_end_id=ends + 2, vocab_size=tokens)


QWEN = vocabulary(151643, 151851)


@pytest.mark.parametrize("vocab_size", [151851, 151936, 152064, 151646])
@pytest.mark.parametrize("ids", [(), (None,), (-1,), (151643,), ([151645, 151644, 151643], 151643), ([198], 0),
                                 (151645, 151643, 151643), (200000,)], ids=str)
def test_a_models_own_is_taken(vocab_size, ids):
    check_vocabulary(QWEN, vocab_size, ids)


@pytest.mark.parametrize("tokenizer, vocab_size", [(QWEN, 151645), (QWEN, 49408), (QWEN, 512),
                                                   (vocabulary(256, 464), 151936)], ids=str)
def test_one_of_another_size_is_refused(tokenizer, vocab_size):
    with pytest.raises(ValueError, match=f"^v: a vocabulary of {tokenizer.vocab_size} tokens, and the model has a "
                                         f"vocab_size of {vocab_size}: is this the model's"):
        check_vocabulary(tokenizer, vocab_size, (151643,))


@pytest.mark.parametrize("lines", [1, 2, 3, 200, 800])
@pytest.mark.parametrize("ids", [(151643,), ([151645, 151644, 151643], 151643, None)], ids=str)
def test_one_that_is_cut_at_the_end_of_a_line_is_refused(lines, ids):
    with pytest.raises(ValueError, match=f"^v: its <|endoftext|> is {151643 - lines}, which is not among "):
        check_vocabulary(vocabulary(151643 - lines, 151851 - lines), 151936, ids)


@pytest.fixture(scope="module")
def cut(tiny_checkpoint, tmp_path_factory):
    """A converted checkpoint whose vocabulary has lost its last line, with a token before that is no byte."""
    folder = tmp_path_factory.mktemp("cut") / "ms"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 257, "pad_token_id": 257}')
    return folder


def test_a_command_refuses_one_that_is_cut(cut, tiny_yaml):
    config = load_config(tiny_yaml("raw", eos_token_id=257, pad_token_id=257), str(cut))
    with pytest.raises(ValueError, match="qwen.tiktoken: its <|endoftext|> is 256, which is not among"):
        build_tokenizer(config)


def test_a_model_that_is_named_is_refused_with_one_that_is_cut(cut, tmp_path):
    with pytest.raises(ValueError, match="qwen.tiktoken: its <|endoftext|> is 256, which is not among"):
        write_config(cut, tmp_path / "config.yaml")


def test_a_command_refuses_that_of_another_model(tiny_yaml, tiny_checkpoint):
    config = load_config(tiny_yaml("chatml"), str(tiny_checkpoint))
    config.processor.tokenizer.vocab_file = find_vocab_file()
    with pytest.raises(ValueError, match="a vocabulary of 151851 tokens, and the model has a vocab_size of 512"):
        build_tokenizer(config)


def test_a_chat_refuses_that_of_another_model(build_tiny):
    model, official = build_tiny(use_past=True, chat_format="chatml"), QwenTokenizer()
    for ask in (lambda: chat(model, official, "Hi"), lambda: chat_batch(model, official, ["Hi"])):
        with pytest.raises(ValueError, match="a vocabulary of 151851 tokens, and the model has a vocab_size of 512"):
            ask()


def test_mindformers_pipeline_which_its_trainer_drives_refuses_that_of_another_model(build_tiny, tiny_hf):
    model = build_tiny(use_past=True, pad_token_id=256, max_decode_length=8)
    with pytest.raises(ValueError, match="a vocabulary of 151851 tokens, and the model has a vocab_size of 512"):
        pipeline("text_generation", model=model, tokenizer=QwenTokenizer())
    tokenizer = QwenTokenizer(str(tiny_hf))
    expected = tokenizer.decode(model.generate(tokenizer.encode("Hi"), max_length=8)[0], skip_special_tokens=True)
    answer = pipeline("text_generation", model=model, tokenizer=tokenizer, max_length=8)("Hi")
    assert answer == [{"text_generation_text": [expected]}]
