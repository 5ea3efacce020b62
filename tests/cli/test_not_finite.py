"""
A checkpoint whose numbers overflow, as float16 does on an NPU: every command says so in one line and returns 1. Of such
a model all logits are the same, and the likeliest token is the first, "!" in Qwen's vocabulary, where nobody looks.
"""
import io
import json
import shutil
import sys

import numpy as np
import pytest
from mindformers.generation import GenerationMixin
from safetensors.numpy import load_file, save_file

from qwen_mindspore.batch.records import Record
from qwen_mindspore.batch.worker import RowOptions, Worker, answer_all
from qwen_mindspore.bench.contestants import NOT_FINITE
from qwen_mindspore.bench.run import run_contestant
from qwen_mindspore.chat.chat import chat_settings
from qwen_mindspore.chat.session import Session
from qwen_mindspore.checkpoint.convert import convert_weight
from qwen_mindspore.cli import batch, chat, perplexity, predict
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.text.tokenizer import QwenTokenizer

SAID = "token 1 of the answer.*float16 may have overflowed.*check the checkpoint"
DAMAGES = {
    "a norm divides by infinity": ("transformer.wte.weight", lambda weight: np.sign(weight) * np.float32(1e38)),
    "a weight is NaN": ("transformer.h.1.mlp.w1.weight",
                        lambda weight: np.where(weight == weight.max(), np.nan, weight)),
    "a layer overflows": ("transformer.h.1.attn.c_proj.weight", lambda weight: weight * np.float32(1e38)),
    "the head is infinite": ("lm_head.weight", lambda weight: np.full_like(weight, np.inf)),
}


@pytest.fixture(scope="module", params=DAMAGES, ids=str)
def damaged(request, tiny_hf, tmp_path_factory):
    """(Hugging Face folder, MindSpore folder) of a damaged golden model."""
    folder = tmp_path_factory.mktemp("damaged")
    hf = folder / "hf"
    shutil.copytree(tiny_hf, hf)
    name, damage = DAMAGES[request.param]
    weights = load_file(hf / "model.safetensors")
    save_file({**weights, name: damage(weights[name]).astype(np.float32)}, hf / "model.safetensors")
    convert_weight(str(hf), str(folder / "ms"))
    return hf, folder / "ms"


@pytest.fixture(scope="module")
def model(damaged):
    model = QwenForCausalLM(QwenConfig.from_hf_config(damaged[0], checkpoint_name_or_path=str(damaged[1]), batch_size=2,
                                                      use_past=True, chat_format="chatml", pad_token_id=256))
    model.set_train(False)
    return model


def last_line(capfd):
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out, err.strip().splitlines()[-1]


@pytest.mark.parametrize("way", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 5, "top_p": 0.5},
                                 {"repetition_penalty": 1.3}, {"min_new_tokens": 2, "eos_token_id": [7]},
                                 {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_generate(model, way):
    with pytest.raises(FloatingPointError, match=f"prompt 0: the logits are .*{SAID}"):
        model.generate([[1, 2, 3], [4]], **{"max_new_tokens": 4, "do_sample": False, **way})


@pytest.mark.parametrize("way", [{}, {"do_sample": True}, {"repetition_penalty": 1.3}], ids=str)
def test_mindformers_own_loop(model, way):
    with pytest.raises(FloatingPointError, match="prompt 0: the logits are .* at position 3[,:] .*float16 may"):
        GenerationMixin.generate(model, [[1, 2, 3]], **{"max_new_tokens": 4, "do_sample": False, **way})


def test_a_chat_keeps_its_conversation(model, tiny_hf):
    session = Session(model, QwenTokenizer(str(tiny_hf)), chat_settings(model.config))
    session.history = [("Hi", "Hello")]
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=f"request 0: the logits are .*{SAID}"):
            list(session.ask("And?"))
        assert session.history == [("Hi", "Hello")]


def test_rows_get_their_error_each(model, tiny_hf):
    worker = Worker(Engine(model), QwenTokenizer(str(tiny_hf)), GenerationSettings(max_new_tokens=4), RowOptions())
    records = [Record(number, {"prompt": "abc", **row}) for number, row in enumerate(
        ({}, {"do_sample": True}, {"repetition_penalty": 1e-40}, {"do_sample": True, "temperature": 1e-40}), 1)]
    results = [result for results, _ in answer_all(worker, records) for result in results]
    assert sorted((result.number, result.kind) for result in results) == [(number, "E") for number in range(1, 5)]
    assert all(f"request {result.number}: the logits are " in result.content["error"] for result in results)


def test_predict(damaged, tiny_yaml, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--do_sample", "true"]):
        assert predict.main(["--config", tiny_yaml("raw"), "--load_checkpoint", str(damaged[1]), *more,
                             "--predict_data", "Hi", "you"]) == 1
        out, line = last_line(capfd)
        assert out == "" and line.startswith("run_qwen_7b: request 1: the logits are ") and "float16" in line


def test_chat_in_a_pipe(damaged, tiny_yaml, capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\nAnd?\n:history\n")))
    assert chat.main(["--config", tiny_yaml("chatml"), "--load_checkpoint", str(damaged[1])]) == 1
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err and "You: " not in err
    for line in (1, 2):
        assert f"run_qwen_7b_chat: line {line}: request 0: the logits are " in err


def test_a_batch_of_nothing_but_such_rows(damaged, tiny_yaml, capfd, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "do_sample": true}\n')
    arguments = ["--config", tiny_yaml("raw"), "--load_checkpoint", str(damaged[1]), "--input",
                 str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert batch.main(arguments) == 1 and "Traceback" not in capfd.readouterr().err
    errors = [json.loads(line) for line in (tmp_path / "out.jsonl.errors.jsonl").read_text().splitlines()]
    assert [error["row"] for error in errors] == [1, 2]
    assert all("the logits are " in error["error"] and "float16" in error["error"] for error in errors)


def test_perplexity_says_where(damaged, tiny_yaml, capfd, tmp_path):
    (tmp_path / "text.txt").write_text("Once upon a time there was a test. " * 4)
    assert perplexity.main(["--config", tiny_yaml("raw"), "--load_checkpoint", str(damaged[1]), "--data",
                            str(tmp_path / "text.txt"), "--context", "16"]) == 1
    out, line = last_line(capfd)
    assert out == "" and "context 16: token 1 of the text: the logits are not finite: float16" in line


@pytest.mark.process
@pytest.mark.parametrize("damaged", ["a layer overflows"], indirect=True)
def test_the_benchmark_gives_no_figures(damaged):
    job = {"kind": "ours", "hf": str(damaged[0]), "checkpoint": str(damaged[1]), "model_config": None, "batches": [1],
           "prompts": [8], "given_up": [], "context": 8, "new_tokens": 4}
    with pytest.raises(ArithmeticError, match=f"^ours: prompt 0: the logits are .*{SAID}.*$"):
        run_contestant("ours", sys.executable, {}, job)
    assert NOT_FINITE not in (0, 1, 2)
