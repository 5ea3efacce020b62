"""perplexity.py against the cross entropy of torch on the plain reference, within the training length and beyond."""
import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import TINY
from helpers.reference_qwen import forward
from qwen_mindspore.cli.perplexity import main, parse_args
from qwen_mindspore.evaluate.perplexity import TokenLosses, measure_context, plot, windows
from qwen_mindspore.model import scoring

# Within and beyond the 64 tokens that the golden model was trained with: dynamic NTK and LogN set in.
CONTEXTS = (24, 64, 100)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text of 451 tokens in a vocabulary of bytes."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_bytes(np.random.default_rng(0).integers(32, 127, 451, dtype=np.uint8).tobytes())
    return path


@pytest.fixture(scope="module")
def reference():
    """A function: ids [S] -> the losses [S - 1] of those after the first."""
    config = json.loads((TINY / "config.json").read_text())
    weights = load_file(TINY / "model.safetensors")

    def losses(ids, **changes):
        logits = forward({**config, **changes}, weights, ids)
        return torch.nn.functional.cross_entropy(logits[:-1], torch.as_tensor(ids)[1:].long(), reduction="none").numpy()

    return losses


# Pieces

def test_pieces_follow_each_other_and_an_incomplete_one_is_left_out():
    assert windows(100, 30) == ([0, 30, 60], 29)


def test_with_a_stride_every_context_predicts_the_same_tokens():
    predicted = {}
    for context in (10, 20, 40):
        starts, count = windows(100, context, stride=8, first_end=40)
        ends = [start + context for start in starts]
        predicted[context] = [token for end in ends for token in range(end - count, end)]
    assert predicted[10] == predicted[20] == predicted[40] == list(range(32, 96))


def test_a_stride_of_the_whole_context_predicts_all_but_the_first_token():
    assert windows(100, 10, stride=10, first_end=20) == (list(range(10, 91, 10)), 9)


# Losses

@pytest.mark.parametrize("use_past", [False, True])
def test_losses_are_the_cross_entropies_of_the_reference(use_past, build_tiny, reference, monkeypatch):
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * 512 * 17)  # the head takes 17 positions at a time
    losses = TokenLosses(build_tiny(use_past=use_past, seq_length=128, batch_size=3, num_blocks=24))
    for context in CONTEXTS:
        ids = np.random.default_rng(context).integers(0, 512, (3, context), dtype=np.int32)
        expected = np.stack([reference(row) for row in ids])
        np.testing.assert_allclose(losses(ids, context - 1), expected, atol=1e-4)
        np.testing.assert_allclose(losses(ids, 5), expected[:, -5:], atol=1e-4)


def test_a_loss_that_is_not_finite_is_an_error_which_names_the_token():
    def losses(pieces, predicted):
        found = np.ones((len(pieces), predicted), np.float32)
        found[(pieces[:, -predicted:] == 130)] = np.nan
        return found

    args = argparse.Namespace(stride=None)
    ids = np.arange(300)
    assert measure_context(losses, ids[:120], 40, args, "model")["loss"] == 1
    for context in (40, 100):
        said = f"model, context {context}: token 130 of the text: the logits are not finite"
        with pytest.raises(FloatingPointError, match=said):
            measure_context(losses, ids, context, args, "model")
    with pytest.raises(FloatingPointError, match="token 130 of the text"):
        measure_context(losses, ids, 40, argparse.Namespace(stride=8, context=[40]), "model")


# The command

def run(capfd, *options):
    """(exit code, stdout, stderr) of the command."""
    code = main(list(map(str, options)))
    return code, *capfd.readouterr()


def test_perplexities_stand_beside_each_other(tiny_yaml, tiny_checkpoint, text, reference, tmp_path, capfd):
    code, out, err = run(capfd, "--config", tiny_yaml("raw"), "--load_checkpoint", tiny_checkpoint, "--data", text,
                         "--context", "100,24", "--compare", "use_logn_attn=false,use_dynamic_ntk=false", "--json",
                         tmp_path / "out.json")
    assert code == 0, err
    ids, report = np.frombuffer(text.read_bytes(), np.uint8), json.loads((tmp_path / "out.json").read_text())
    for curve, changes in zip(report["curves"], ({}, {"use_logn_attn": False, "use_dynamic_ntk": False})):
        for point, context in zip(curve["points"], (24, 100)):
            pieces = ids[:len(ids) // context * context].reshape(-1, context).astype(np.int64)
            loss = np.mean([reference(piece, **changes) for piece in pieces])
            assert (point["context"], point["predicted"]) == (context, len(pieces) * (context - 1))
            assert point["loss"] == pytest.approx(loss, abs=1e-4)
            assert point["perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
    same, differing = ([curve["points"][i]["perplexity"] for curve in report["curves"]] for i in (0, 1))
    assert same[0] == pytest.approx(same[1], rel=1e-5) and differing[0] != pytest.approx(differing[1], rel=1e-3)
    title, *rows = out.splitlines()
    assert title.split() == ["context", "predicted", tiny_checkpoint.name, f"{tiny_checkpoint.name},",
                             "use_logn_attn=false,", "use_dynamic_ntk=false"]
    assert [row.split()[:3] for row in rows] == [["24", "414", f"{same[0]:.3f}"], ["100", "396", f"{differing[0]:.3f}"]]
    assert "tokens/s" in err and f"perplexity: {tiny_checkpoint.name}, 24: {same[0]:.3f}" in err


def test_another_checkpoint_may_be_compared_and_a_stride_given(tiny_yaml, tiny_checkpoint, tiny_ckpt, text, tmp_path,
                                                               capfd):
    code, out, err = run(capfd, "--config", tiny_yaml("raw"), "--load_checkpoint", tiny_checkpoint, "--data", text,
                         "--context", "40,64", "--stride", 16, "--max_tokens", 200, "--use_past", "--compare",
                         f"load_checkpoint={tiny_ckpt}", "--json", tmp_path / "out.json")
    assert code == 0, err
    report = json.loads((tmp_path / "out.json").read_text())
    assert [curve["name"] for curve in report["curves"]] == [tiny_checkpoint.name, "qwen.ckpt"]
    points = [curve["points"] for curve in report["curves"]]
    assert [point["perplexity"] for point in points[0]] == pytest.approx([point["perplexity"] for point in points[1]])
    assert {point["predicted"] for point in points[0]} == {16 * 9}
    assert report["tokens"] == 200 and "+0.00%" in out


def test_a_plot_without_matplotlib_says_what_it_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        parse_args(["--data", "x", "--plot", str(tmp_path / "plot.png")])
    assert "--plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err


def test_a_plot_is_drawn(tmp_path):
    path = tmp_path / "plot.png"
    curves = [{"name": name, "points": [{"context": context, "perplexity": 9.0} for context in (512, 1024)]}
              for name in ("float32", "int4")]
    plot({"data": "some/text.txt", "curves": curves}, path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options, message", [
    (["--context", "500"], "451 tokens, less than the context 500"),
    (["--context", "24", "--compare", "use_dynamic_tnk=true"], "use_dynamic_tnk: a model's config has no such setting"),
    (["--data", "missing.txt"], "missing.txt"),
    (["--load_checkpoint", "missing.ckpt"], "missing.ckpt: no such file"),
])
def test_what_can_not_be_measured_ends_in_one_line(options, message, tiny_yaml, tiny_checkpoint, text, capfd):
    code, out, err = run(capfd, "--config", tiny_yaml("raw"), "--load_checkpoint", tiny_checkpoint, "--data", text,
                         *options)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("perplexity: ") and message in err.splitlines()[-1]


@pytest.mark.parametrize("options, message", [
    ("--context 1", "at least 2 tokens"),
    ("--context 64,x", "expected a positive number, found x"),
    ("--context 64,128 --stride 65", "--stride 65: more than the context 64"),
    ("--compare use_dynamic_ntk", "expected KEY=VALUE"),
    ("--json nowhere/x.json", "there is no folder"),
])
def test_options_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit) as error:
        parse_args(["--data", "x", *options.split()])
    assert error.value.code == 2 and message in capsys.readouterr().err
