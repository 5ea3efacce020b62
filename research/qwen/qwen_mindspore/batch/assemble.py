"""What a run of batch generation is made of, by its command line: the settings, the model, what answers depend on."""
import hashlib
import os
from dataclasses import asdict

from qwen_mindspore.batch.records import file_format
from qwen_mindspore.batch.worker import RowOptions, Worker
from qwen_mindspore.checkpoint.files import checkpoint_files
from qwen_mindspore.common.files import sha256
from qwen_mindspore.generate.blocks import piece_size
from qwen_mindspore.generate.build import build_config, build_model, build_tokenizer, set_context, size_model
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.chatml import DEFAULT_SYSTEM

__all__ = ["build_worker", "fingerprint", "load_settings", "row_options"]

SAMPLED = 64  # pieces of each file of a checkpoint that tell it from another
NOT_IN_ANSWERS = ("batch_size", "num_blocks", "checkpoint_name_or_path")


def load_settings(args, config):
    """The GenerationSettings of every row; ValueError for a value that one can't have."""
    settings = GenerationSettings.load(build_config(config), **args.generation)
    if args.parse_special and settings.chat_format != "raw":
        raise ValueError("--parse_special: this is a chat model, and in ChatML what a user types stays text; with "
                         "--chat_format raw prompts are taken as they are")
    return settings.override(seed=settings.seed or 0)  # a run that is resumed must draw what it would have drawn


def row_options(args):
    """The RowOptions of the command line."""
    return RowOptions(args.prompt_column, args.id_column, DEFAULT_SYSTEM if args.system is None else args.system,
                      args.parse_special)


def fingerprint(args, config, settings, options):
    """What an answer depends on, as a dict of JSON's types; never the number of rows at once, or where they are."""
    model_config = config.model.model_config
    tokenizer = build_tokenizer(config)
    model = {name: value for name, value in model_config.items() if name not in NOT_IN_ANSWERS}
    kernels = os.environ.get("QWEN_KERNELS") or model_config.kernels or "auto"
    # What 0.1 wrote to a cache of 8 bits depended on the rows beside: its answers are not to be mixed with these.
    pieces = {"cache_pieces": piece_size(build_config(config))} if model_config.use_cache_quantization else {}
    return {**pieces, "input": {"sha256": sha256(args.input), "format": file_format(args.input, args.input_format)},
            "rows_are_read": asdict(options), "settings": asdict(settings),
            "model": {**model, "device": config.context.device_target, "kernels": kernels},
            "checkpoint": checkpoint_digest(model_config.checkpoint_name_or_path),
            "vocabulary": sha256(tokenizer.vocab_file)}


def checkpoint_digest(checkpoint):
    """
    A digest by which a checkpoint is known again: of its files' sizes and of 64 pieces of each, spread evenly. Reading
    all of a large model would take longer than loading it.
    """
    digest = hashlib.sha256()
    for path in checkpoint_files(checkpoint):
        size, piece = path.stat().st_size, 2**16
        digest.update(f"{size} ".encode())
        with open(path, "rb") as file:
            for place in range(0, size, max(piece, size // SAMPLED)):
                file.seek(place)
                digest.update(file.read(piece))
    return digest.hexdigest()


def build_worker(args, config):
    """The Worker of one process, with a model of its own."""
    set_context(config)
    size_model(args, config)
    engine = Engine(build_model(config), max_batch=args.batch_size)
    return Worker(engine, build_tokenizer(config), load_settings(args, config), row_options(args))
