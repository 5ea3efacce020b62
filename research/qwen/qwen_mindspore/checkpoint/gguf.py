"""Write a Hugging Face Qwen as a GGUF file, for llama.cpp, which knows this architecture as `qwen`."""
import math
from pathlib import Path

from qwen_mindspore.checkpoint import files, names
from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.files import replacing

# GGUF name, Hugging Face name. The gate is `w2`, as everywhere in Qwen.
LAYER = (
    ("attn_norm.weight", "ln_1.weight"),
    ("attn_qkv.weight", "attn.c_attn.weight"),
    ("attn_qkv.bias", "attn.c_attn.bias"),
    ("attn_output.weight", "attn.c_proj.weight"),
    ("ffn_norm.weight", "ln_2.weight"),
    ("ffn_gate.weight", "mlp.w2.weight"),
    ("ffn_up.weight", "mlp.w1.weight"),
    ("ffn_down.weight", "mlp.c_proj.weight"),
)
EMBEDDING = "token_embd.weight"
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")


def write_gguf(folder, path, dtype="F32"):
    """Write a Qwen for llama.cpp, a tensor at a time, whole or not at all. It has no vocabulary: ids in, ids out.

    Args:
        folder: Hugging Face folder: config.json and the weights.
        path: the file to write.
        dtype: one of TYPES, for the matrices; vectors, and rows that don't divide into the type's blocks, are
            float32. llama.cpp has neither Qwen's dynamic NTK nor LogN: they are left out.

    Returns:
        `path`.

    Raises:
        ValueError: no Qwen, a tensor is missing or misshapen, or llama.cpp can't hold this shape.
        OSError: a file is missing, or the disk is full.
    """
    gguf = import_extra("gguf", "gguf", f"{path}: writing a GGUF file")
    folder, path = Path(folder), Path(path)
    config = files.read_config(folder / "config.json")
    shapes = names.hf_shapes(config)
    checkpoint = files.Checkpoint(
        files.find_files(folder, ("model*.safetensors", "pytorch_model*.bin")))
    files.check_tensors(checkpoint, names.ms_to_hf(config))
    if shapes["transformer.h.0.attn.c_proj.weight"] != (config["hidden_size"],) * 2:
        raise ValueError(f"{folder}: llama.cpp's qwen needs num_attention_heads * kv_channels = hidden_size")

    with replacing(path) as scratch:
        writer = gguf.GGUFWriter(scratch, "qwen")
        _add_settings(writer, config)
        tensors = [(name, hf_name, _tensor_type(shapes[hf_name], gguf.GGMLQuantizationType[dtype]))
                   for name, hf_name in _pairs(config)]
        for name, hf_name, kind in tensors:
            shape = shapes[hf_name]
            writer.add_tensor_info(name, shape, None, math.prod(gguf.quant_shape_to_byte_shape(shape, kind)), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, hf_name, kind in tensors:
            tensor = checkpoint.read(hf_name, 0, shapes[hf_name][0]).float().numpy()
            writer.write_tensor_data(gguf.quantize(tensor, kind))
        writer.close()
    return path


def gguf_bytes(path):
    """(bytes of all weights, bytes of those that a decode step reads: all but the embedding)."""
    gguf = import_extra("gguf", "gguf", f"{path}: reading a GGUF file")
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors}
    total = sum(tensors.values())
    return total, total - tensors[EMBEDDING]


def _add_settings(writer, config):
    writer.add_context_length(max(config.get("max_position_embeddings") or 0, config["seq_length"]))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_rope_freq_base(config["rotary_emb_base"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["layer_norm_epsilon"])
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])


def _pairs(config):
    """(GGUF name, Hugging Face name) of every tensor. llama.cpp wants a head even where it is the embedding."""
    head = "transformer.wte.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    layers = [(f"blk.{layer}.{name}", names.HF_LAYER.format(layer) + hf_name)
              for layer in range(config["num_hidden_layers"]) for name, hf_name in LAYER]
    return [(EMBEDDING, "transformer.wte.weight"), *layers, ("output_norm.weight", "transformer.ln_f.weight"),
            ("output.weight", head)]


def _tensor_type(shape, dtype):
    gguf = import_extra("gguf", "gguf", "a GGUF file")
    block, _ = gguf.GGML_QUANT_SIZES[dtype]
    return dtype if len(shape) == 2 and shape[1] % block == 0 else gguf.GGMLQuantizationType.F32
