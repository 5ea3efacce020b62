"""Write a Hugging Face Qwen as a GGUF file, for llama.cpp, which knows this architecture as `qwen`."""
import math
from pathlib import Path

from qwen_mindspore.checkpoint.files import HUGGING_FACE, Checkpoint, check_tensors, checkpoint_files, read_config
from qwen_mindspore.checkpoint.names import hf_shapes, ms_to_hf
from qwen_mindspore.common.extras import import_extra
from qwen_mindspore.common.files import replacing
from qwen_mindspore.families import QWEN, family_of

EMBEDDING = QWEN.name("embedding", "gguf") + ".weight"
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
    config = read_config(folder / "config.json")
    if family_of(config) is not QWEN:  # llama.cpp keeps the rows of q and k of other families in another order
        raise ValueError(f"{folder}: only {QWEN.model_type!r} can be written for llama.cpp")
    shapes, sizes = hf_shapes(config), family_of(config).sizes(config)
    checkpoint = Checkpoint(checkpoint_files(folder, HUGGING_FACE))
    check_tensors(checkpoint, ms_to_hf(config))
    if sizes.query != sizes.hidden:
        raise ValueError(f"{folder}: llama.cpp's qwen needs num_attention_heads * kv_channels = hidden_size")

    with replacing(path) as scratch:
        writer = gguf.GGUFWriter(scratch, QWEN.model_type)
        _add_settings(writer, config, sizes)
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


def _add_settings(writer, config, sizes):
    keys = family_of(config).keys
    writer.add_context_length(max(config.get("max_position_embeddings") or 0, config["seq_length"]))
    writer.add_block_count(sizes.layers)
    writer.add_embedding_length(sizes.hidden)
    # llama.cpp's qwen counts both branches of the feed-forward, as Qwen's config does.
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(sizes.heads)
    writer.add_rope_freq_base(config[keys.theta])
    writer.add_rope_dimension_count(sizes.head_size)
    writer.add_layer_norm_rms_eps(config[keys.epsilon])
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(sizes.vocab)


def _pairs(config):
    """(GGUF name, Hugging Face name) of every tensor. llama.cpp wants a head even where it is the embedding."""
    family = family_of(config)
    pairs = {tensor.names["gguf"]: tensor.names["hf"] for tensor in family.tensors(config)}
    head = family.head_name("hf", family.sizes(config).tied)
    return list((pairs | {family.name("head", "gguf") + ".weight": head + ".weight"}).items())


def _tensor_type(shape, dtype):
    gguf = import_extra("gguf", "gguf", "a GGUF file")
    block, _ = gguf.GGML_QUANT_SIZES[dtype]
    return dtype if len(shape) == 2 and shape[1] % block == 0 else gguf.GGMLQuantizationType.F32
