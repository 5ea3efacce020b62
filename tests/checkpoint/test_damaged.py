"""
Files cut off at every byte, with bits flipped, shapes and types swapped: read, or refused by name in one line.

What is damaged is chosen by a fixed seed. A flipped bit of a weight's own bytes can't be seen: it is another number.
"""
import base64
import itertools
import json
import random
import struct

import pytest
import torch
from safetensors.torch import save

from helpers.checkpoints import load_folder
from qwen_mindspore.checkpoint.convert import convert_reversed, convert_weight
from qwen_mindspore.checkpoint.files import Checkpoint, check_tensors, checkpoint_files, read_config
from qwen_mindspore.checkpoint.gptq import read_settings
from qwen_mindspore.checkpoint.names import hf_to_ms, ms_to_hf
from qwen_mindspore.text.tokenizer import load_vocab

CONFIG = {"model_type": "qwen", "vocab_size": 2, "hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
          "kv_channels": 2, "intermediate_size": 4, "tie_word_embeddings": False}
QUANTIZE = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "quant_method": "gptq"}
INDEX = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors",
                                                       "b": "model-00002-of-00002.safetensors"}}
FLIPS, CUTS = 200, 400  # of a file; a smaller one is cut off at every byte


def tensors():
    """{Hugging Face name: tensor}, each number another one."""
    numbers = itertools.count(1)
    return {name: torch.tensor([float(next(numbers)) for _ in range(torch.Size(tensor.shape).numel())])
            .half().reshape(tensor.shape) for name, tensor in ms_to_hf(CONFIG).items()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The kinds of files, whole: kind -> bytes."""
    folder = tmp_path_factory.mktemp("whole")
    hf = folder / "hf"
    hf.mkdir()
    (hf / "config.json").write_text(json.dumps(CONFIG))
    (hf / "model.safetensors").write_bytes(save(tensors()))
    convert_weight(hf, folder / "qwen.ckpt")
    torch.save(tensors(), folder / "zip.bin")
    torch.save(tensors(), folder / "old.bin", _use_new_zipfile_serialization=False)
    vocabulary = b"".join(b"%s %d\n" % (base64.b64encode(bytes([byte])), byte) for byte in range(256))
    return {"safetensors": (hf / "model.safetensors").read_bytes(), "ckpt": (folder / "qwen.ckpt").read_bytes(),
            "bin": (folder / "zip.bin").read_bytes(), "old bin": (folder / "old.bin").read_bytes(),
            "index": json.dumps(INDEX).encode(), "quantize_config": json.dumps(QUANTIZE).encode(),
            "config": json.dumps(CONFIG).encode(), "vocabulary": vocabulary}


def read_weights(folder, name, data, table):
    """All weights of a model as one list of numbers."""
    path = folder / name
    path.write_bytes(data)
    checkpoint = Checkpoint(checkpoint_files(path, ("*.safetensors", "*.ckpt", "*.bin")))
    check_tensors(checkpoint, table)
    return {tensor: checkpoint.read(tensor, 0, checkpoint.tensors[tensor].shape[0]).tolist() for tensor in table}


def read_index(folder, data):
    for name in INDEX["weight_map"].values():
        (folder / name).touch()
    (folder / "model.safetensors.index.json").write_bytes(data)
    return [file.name for file in checkpoint_files(folder)]


def read_quantize_config(folder, data):
    (folder / "quantize_config.json").write_bytes(data)
    return read_settings(folder, CONFIG)


def read_model_config(folder, data):
    (folder / "config.json").write_bytes(data)
    return hf_to_ms(read_config(folder / "config.json"))


def read_vocabulary(folder, data):
    (folder / "qwen.tiktoken").write_bytes(data)
    return load_vocab(folder / "qwen.tiktoken")


READ = {
    "safetensors": lambda folder, data: read_weights(folder, "x.safetensors", data, ms_to_hf(CONFIG)),
    "ckpt": lambda folder, data: read_weights(folder, "x.ckpt", data, hf_to_ms(CONFIG)),
    "bin": lambda folder, data: read_weights(folder, "x.bin", data, ms_to_hf(CONFIG)),
    "old bin": lambda folder, data: read_weights(folder, "x.bin", data, ms_to_hf(CONFIG)),
    "index": read_index, "quantize_config": read_quantize_config, "config": read_model_config,
    "vocabulary": read_vocabulary,
}


def attempt(kind, folder, data):
    """What is read, or None where it was refused in one line that begins with the path."""
    try:
        return READ[kind](folder, data)
    except (ValueError, OSError) as error:
        assert str(folder) in str(error) or str(error).startswith("config.json: "), error
        assert str(error).isprintable(), error
        return None


@pytest.mark.parametrize("kind", READ)
def test_a_whole_file_is_read(kind, tmp_path, sources):
    assert attempt(kind, tmp_path, sources[kind]) is not None


@pytest.mark.parametrize("kind", READ)
def test_a_file_that_is_cut_off_anywhere_is_refused(kind, tmp_path, sources):
    data = sources[kind]
    lengths = range(len(data)) if len(data) <= CUTS else [
        *random.Random(0).sample(range(len(data)), CUTS - 40), *range(len(data) - 40, len(data))]
    # The line end behind the last token says nothing, and the last bytes of torch's old format are 0 anyway.
    whole = [length for length in lengths if attempt(kind, tmp_path, data[:length]) is not None]
    assert whole == ([len(data) - 1] if kind == "vocabulary" else [])


@pytest.mark.parametrize("kind", READ)
def test_a_file_with_a_flipped_bit_is_read_or_refused(kind, tmp_path, sources):
    data, choose = sources[kind], random.Random(1)
    refused = 0
    for _ in range(FLIPS):
        place, bit = choose.randrange(len(data)), choose.randrange(8)
        changed = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1:]
        refused += attempt(kind, tmp_path, changed) is None
    assert refused > FLIPS // 10


@pytest.mark.parametrize("kind", READ)
def test_a_file_with_random_pieces_moved_or_removed_is_read_or_refused(kind, tmp_path, sources):
    data, choose = sources[kind], random.Random(2)
    for _ in range(FLIPS // 3):
        first, last = sorted(choose.sample(range(len(data) + 1), 2))
        piece = data[first:last]
        for changed in (data[:first] + data[last:], data[:last] + piece + data[last:],
                        data[:first] + piece[::-1] + data[last:], data[:first] + bytes(len(piece)) + data[last:]):
            attempt(kind, tmp_path, changed)


SWAPS = {
    "a shape that is turned": lambda header: header["lm_head.weight"].update(shape=[1, 4]),
    "a shape without end": lambda header: header["lm_head.weight"].update(shape=[2**62, 2**62]),
    "a shape of less than nothing": lambda header: header["lm_head.weight"].update(shape=[-2, -2]),
    "a shape that is a text": lambda header: header["lm_head.weight"].update(shape="2, 2"),
    "another type of that size": lambda header: header["lm_head.weight"].update(dtype="I16"),
    "another type": lambda header: header["lm_head.weight"].update(dtype="F32"),
    "a type that there isn't": lambda header: header["lm_head.weight"].update(dtype="F17"),
    "bytes of another tensor": lambda header: header["lm_head.weight"].update(
        data_offsets=header["transformer.wte.weight"]["data_offsets"]),
    "bytes beyond the end": lambda header: header["lm_head.weight"].update(data_offsets=[0, 2**40]),
    "bytes backwards": lambda header: header["lm_head.weight"].update(data_offsets=[8, 0]),
    "no header at all": lambda header: header.clear(),
    "a tensor that is none": lambda header: header.update({"lm_head.weight": None}),
}


@pytest.mark.parametrize("swap", SWAPS.values(), ids=SWAPS)
def test_a_safetensors_header_that_says_other_things_is_refused(swap, tmp_path, sources):
    data = sources["safetensors"]
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + size])
    swap(header)
    text = json.dumps(header).encode()
    assert attempt("safetensors", tmp_path, struct.pack("<Q", len(text)) + text + data[8 + size:]) is None


def message(*fields):
    """A message of protobuf: (number, int or bytes) each."""
    return b"".join(bytes([number << 3 | 2]) + varint(len(value)) + value if isinstance(value, bytes)
                    else bytes([number << 3]) + varint(value) for number, value in fields)


def varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


TENSOR = (1, 2), (2, b"Float32"), (3, bytes(8))
CKPTS = {
    "a name that is a number": message((1, message((1, 7), (2, message(*TENSOR))))),
    "a tensor that is a number": message((1, message((1, b"x"), (2, 7)))),
    "a parameter that is a number": message((1, 7)),
    "a type that is a number": message((1, message((1, b"x"), (2, message((1, 2), (2, 7), (3, bytes(8))))))),
    "content that is a number": message((1, message((1, b"x"), (2, message((1, 2), (2, b"Float32"), (3, 7)))))),
    "a size that is a text": message((1, message((1, b"x"), (2, message((1, b"2"), *TENSOR[1:]))))),
    "a name that is no text": message((1, message((1, b"\xff"), (2, message(*TENSOR))))),
    "a name without end": message((1, message((1, b"x" * 70_000), (2, message(*TENSOR))))),
    "a name with a line end": message((1, message((1, b"x\ny"), (2, message(*TENSOR))))),
    "a type with a line end": message((1, message((1, b"x"), (2, message((1, 2), (2, b"a\nb"), (3, b"")))))),
    "a number without end": bytes([0x0A, *[0xFF] * 100_000]),
    "the same name in two shapes": message(*[(1, message((1, b"x"), (2, message((1, size), *TENSOR[1:]))))
                                             for size in (1, 2)]),
    "the same tensor twice": message((1, message((1, b"x"), (2, message(*TENSOR))))) * 2,
    "a size without end": message((1, message((1, b"x"), (2, message((1, 2**63), *TENSOR[1:]))))),
    "nothing": b"",
}


@pytest.mark.parametrize("data", CKPTS.values(), ids=CKPTS)
def test_a_ckpt_that_says_other_things_is_refused(data, tmp_path):
    assert attempt("ckpt", tmp_path, data) is None


@pytest.mark.parametrize("text, said", [
    ('{"weight_map": null}', "weight_map: expected the file of each tensor, found none"),
    ('{"weight_map": "a.safetensors"}', "weight_map: expected the file of each tensor, found 'a.safetensors'"),
    ('{"weight_map": ["a.safetensors"]}', r"weight_map: .*found \['a.safetensors'\]"),
    ('{"weight_map": {"x": null}}', "weight_map: .* found None for 'x'"),
    ('{"weight_map": {"x": ["a"]}}', r"weight_map: .* found \['a'\] for 'x'"),
    ('{"weight_map": {"x": ""}}', "weight_map: .* found '' for 'x'"),
    ('{"weight_map": {"x": "."}}', "weight_map: .* found '.' for 'x'"),
    ('{"weight_map": {"x": "../a.safetensors"}}', "weight_map: .* in this folder, found '../a.safetensors' for 'x'"),
    ('{"weight_map": {"x": "/a.safetensors"}}', "weight_map: .* found '/a.safetensors' for 'x'"),
    ('{"weight_map": {"x": "a\\n.safetensors"}}', r"weight_map: .* found 'a\\n.safetensors' for 'x'"),
    ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "'x' is there twice, as 'a.safetensors' and as"),
    ('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}',
     r"a.safetensors is missing, but model.safetensors.index.json names it \(2 of 2 files are missing\): fetch"),
])
def test_an_index_that_says_other_things_is_refused(text, said, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        checkpoint_files(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("kind, name", [("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin"),
                                        ("old bin", "pytorch_model.bin"), ("ckpt", "qwen.ckpt")])
def test_nothing_half_is_left_of_a_conversion(kind, name, tmp_path, sources):
    data, choose = sources[kind], random.Random(3)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    convert = convert_reversed if kind == "ckpt" else convert_weight
    for number in range(12):
        (folder / name).write_bytes(data[:choose.randrange(len(data))])
        output = tmp_path / "out" / ("x.ckpt" if number % 2 and kind != "ckpt" else "folder")
        with pytest.raises((ValueError, OSError)):
            convert(folder, output)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (folder / name).write_bytes(data)
    assert convert(folder, tmp_path / "out/folder") == tmp_path / "out/folder"
    assert load_folder(tmp_path / "out/folder")
