"""Small Qwen checkpoints for the tests of the converters."""
import json

import torch
from safetensors.torch import load_file, save_file

from qwen_mindspore.checkpoint.names import hf_shapes

# Head size 6 is not hidden_size / num_attention_heads: the table must take it from kv_channels.
CONFIG = {
    "model_type": "qwen",
    "vocab_size": 11,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_channels": 6,
    "intermediate_size": 20,
    "tie_word_embeddings": False,
    "bf16": False,
    "fp16": False,
    "fp32": True,
}


def random_tensors(dtype=torch.float32):
    """{Hugging Face name: random tensor} of a Qwen, always the same."""
    torch.manual_seed(0)
    return {name: torch.randn(shape).to(dtype) for name, shape in hf_shapes(CONFIG).items()}


def write_hf_folder(folder, tensors, config=CONFIG, shards=1, suffix=".safetensors", index=True):
    """A Hugging Face folder with its three metadata files; returns it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"chat_format": "raw"}')
    (folder / "qwen.tiktoken").write_text("IQ== 0\n")
    stem = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    if shards == 1:
        save(folder / f"{stem}{suffix}", tensors)
        return folder
    files = [f"{stem}-{number:05}-of-{shards:05}{suffix}" for number in range(1, shards + 1)]
    weight_map = {name: files[place % shards] for place, name in enumerate(tensors)}
    for file in files:
        save(folder / file, {name: tensors[name] for name in tensors if weight_map[name] == file})
    if index:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save(path, tensors):
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)


def load_folder(folder):
    """{name: tensor} of all safetensors in a folder."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def same_bits(left, right):
    """Whether two tensors have the same type, shape and bits."""
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(bits(left), bits(right))


def bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)
