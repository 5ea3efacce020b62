"""A config that ties the head to the embedding, against what the checkpoint has: equal is accepted, others refused."""
import json

import pytest
import torch

from helpers.checkpoints import CONFIG, load_folder, random_tensors, save, write_hf_folder
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight
from qwen_mindspore.model.torch_qwen import TorchQwen

TIED = {**CONFIG, "tie_word_embeddings": True}
HEAD, EMBEDDING, MS_EMBEDDING = "lm_head.weight", "transformer.wte.weight", "transformer.wte.embedding_weight"


def tied_tensors(dtype=torch.float32):
    """A model whose head is its embedding, and stored."""
    tensors = random_tensors(dtype)
    return tensors | {HEAD: tensors[EMBEDDING].clone()}


def one_value_differs():
    tensors = tied_tensors()
    tensors[HEAD][10, 7] += 1e-3
    return tensors


DIFFERENT = {
    "another head": random_tensors,
    "one value": one_value_differs,
    "another size": lambda: tied_tensors() | {HEAD: torch.ones(12, 8)},
    "another kind": lambda: tied_tensors() | {HEAD: torch.ones(11, 8).int()},
    "no matrix": lambda: tied_tensors() | {HEAD: torch.tensor(1.0)},
}


@pytest.mark.parametrize("tensors", DIFFERENT.values(), ids=DIFFERENT)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_another_head_is_refused_where_the_config_ties(tmp_path, tensors, suffix):
    folder = write_hf_folder(tmp_path / "hf", tensors(), TIED, suffix=suffix)
    with pytest.raises(ValueError, match=f"{HEAD} is not {EMBEDDING}, but the config ties the two: set "
                                         '"tie_word_embeddings" to false in it'):
        convert_weight(folder, tmp_path / "ms")
    assert not (tmp_path / "ms").exists()


@pytest.mark.parametrize("tensors", [tied_tensors(), tied_tensors(torch.bfloat16),
                                     tied_tensors(torch.float16) | {HEAD: tied_tensors(torch.float16)[HEAD].float()}])
@pytest.mark.parametrize("tied", [True, "true", "True"])
def test_an_equal_head_is_accepted_and_left_out(tmp_path, tensors, tied):
    folder = write_hf_folder(tmp_path / "hf", tensors, {**CONFIG, "tie_word_embeddings": tied})
    convert_weight(folder, tmp_path / "ms")
    written = load_folder(tmp_path / "ms")
    assert HEAD not in written and torch.equal(written[MS_EMBEDDING], tensors[EMBEDDING])


def test_a_tied_model_without_a_head_is_whole(tmp_path):
    tensors = {name: tensor for name, tensor in random_tensors().items() if name != HEAD}
    convert_weight(write_hf_folder(tmp_path / "hf", tensors, TIED), tmp_path / "ms")
    convert_reversed(tmp_path / "ms", tmp_path / "back")
    assert load_folder(tmp_path / "back").keys() == tensors.keys()


@pytest.mark.parametrize("config", [CONFIG, {**CONFIG, "tie_word_embeddings": "False"},
                                    {key: value for key, value in CONFIG.items() if key != "tie_word_embeddings"}])
def test_a_checkpoint_without_a_head_is_refused_where_the_config_does_not_tie(tmp_path, config):
    tensors = {name: tensor for name, tensor in random_tensors().items() if name != HEAD}
    folder = write_hf_folder(tmp_path / "hf", tensors, config)
    with pytest.raises(ValueError, match=rf"{HEAD} is missing \(1 of 19 tensors are\): fetch the whole checkpoint; or, "
                                         'if the head of this model is the embedding, set "tie_word_embeddings"'):
        convert_weight(folder, tmp_path / "ms")


@pytest.mark.parametrize("tied", ["False", "false", False, None])
def test_what_is_not_tied_keeps_its_head(tmp_path, tied):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), {**CONFIG, "tie_word_embeddings": tied})
    convert_weight(folder, tmp_path / "ms")
    assert torch.equal(load_folder(tmp_path / "ms")[HEAD], random_tensors()[HEAD])


@pytest.mark.parametrize("tied", ["perhaps", 2, []])
def test_what_neither_ties_nor_does_not_is_refused(tmp_path, tied):
    folder = write_hf_folder(tmp_path / "hf", random_tensors(), {**CONFIG, "tie_word_embeddings": tied})
    with pytest.raises(ValueError, match="tie_word_embeddings: expected true or false"):
        convert_weight(folder, tmp_path / "ms")


def test_the_way_back_drops_no_head_that_differs(tmp_path, capsys):
    convert_weight(write_hf_folder(tmp_path / "hf", random_tensors()), tmp_path / "ms")
    (tmp_path / "ms/config.json").write_text(json.dumps(TIED))
    with pytest.raises(ValueError, match=f"{HEAD} is not {MS_EMBEDDING}, but the config ties the two"):
        convert_reversed(tmp_path / "ms", tmp_path / "back")

    tensors = load_folder(tmp_path / "ms")
    save(tmp_path / "tied.safetensors", tensors | {HEAD: tensors[MS_EMBEDDING].clone()})
    convert_reversed(tmp_path / "tied.safetensors", tmp_path / "back", config=tmp_path / "ms/config.json")
    assert HEAD not in load_folder(tmp_path / "back")
    assert "left out" not in capsys.readouterr().err


def test_the_model_in_torch_does_not_drop_it_either(tmp_path):
    sizes = {"layer_norm_epsilon": 1e-6, "rotary_emb_base": 1e4}
    with pytest.raises(ValueError, match="but the config ties the two"):
        TorchQwen.from_folder(write_hf_folder(tmp_path / "hf", random_tensors(), TIED | sizes))
    tied = TorchQwen.from_folder(write_hf_folder(tmp_path / "tied", tied_tensors(), TIED | sizes))
    assert torch.equal(tied.head, random_tensors()[EMBEDDING])
