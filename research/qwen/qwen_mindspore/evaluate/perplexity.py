"""Perplexity of a text at given context lengths."""
import math
import time
from pathlib import Path

import numpy as np

from qwen_mindspore.common.plots import import_pyplot
from qwen_mindspore.common.progress import progress_bar, say
from qwen_mindspore.generate.build import build_model, build_tokenizer, load_config, set_context
from qwen_mindspore.generate.sampling import check_finite
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.scoring import Head, HiddenStates, chunks
from qwen_mindspore.text.files import encode_texts, read_texts

__all__ = ["TokenLosses", "losses_of", "measure", "plot", "table", "windows"]

BATCH_TOKENS = 4096  # that go through the model at once, unless a context is longer


def windows(tokens, context, stride=None, first_end=None):
    """
    The pieces of a text.

    Args:
        tokens (int): Of the text.
        context (int): Of a piece.
        stride (int): From one piece to the next. Default: `context`.
        first_end (int): Where the first piece ends. Default: `context`.

    Returns:
        (starts, predicted): where pieces start, a list; and how many tokens are predicted at the end of each.
    """
    stride = stride or context
    return [end - context for end in range(first_end or context, tokens + 1, stride)], min(stride, context - 1)


def measure(args):
    """
    Run everything.

    Args:
        args (argparse.Namespace): The options of scripts/perplexity.py.

    Returns:
        dict, what --json writes: data, tokens of it, stride, and curves, each with name, checkpoint, changes and
        points: context, perplexity, loss (mean negative log-likelihood, in nats), predicted (tokens), seconds.

    Raises:
        ValueError: The text is too short, or options and checkpoint don't fit each other.
        OSError: A file is missing.
        FloatingPointError: The logits of a token are not finite.
    """
    texts, curves, ids = read_texts(args.data), [], None
    for changes in [{}, *args.compare]:
        config = make_config(args, changes)
        if ids is None:
            ids = encode_texts(build_tokenizer(config), texts)[:args.max_tokens]
            if len(ids) < args.context[-1]:
                raise ValueError(f"--data {args.data}: {len(ids)} tokens, less than the context {args.context[-1]}")
        set_context(config)
        checkpoint = config.model.model_config.checkpoint_name_or_path
        curve = {"name": _name(checkpoint, changes), "checkpoint": str(checkpoint), "changes": changes, "points": []}
        curves.append(curve)
        losses = TokenLosses(build_model(config))
        for context in args.context:
            point = measure_context(losses, ids, context, args, curve["name"])
            curve["points"].append(point)
            say("perplexity", f"{curve['name']}, {context}: {point['perplexity']:.3f}")
        del losses
    return {"data": str(args.data), "tokens": len(ids), "stride": args.stride, "curves": curves}


def make_config(args, changes):
    """
    The config of a curve, with room for the longest context.

    Raises:
        ValueError: A setting that a model's config does not have.
    """
    changes = dict(changes)
    checkpoint = str(changes.pop("load_checkpoint", args.load_checkpoint))
    config = load_config(args.config, checkpoint, args.device_target, args.device_id)
    model_config, default, longest = config.model.model_config, QwenConfig(), args.context[-1]
    for key, value in changes.items():
        if not hasattr(default, key):
            raise ValueError(f"--compare {key}: a model's config has no such setting")
        model_config[key] = value
    # What the model was trained with stays what it is, unless the config's seq_length said so.
    model_config.train_seq_length = model_config.train_seq_length or model_config.seq_length
    model_config.seq_length = longest
    for key in ("max_position_embeddings", "max_position_embedding"):
        if model_config.get(key):
            model_config[key] = max(model_config[key], longest)
    model_config.use_past = bool(args.use_past or model_config.get("use_cache_quantization"))
    model_config.batch_size = max(_batch_size(context) for context in args.context)
    blocks = [_batch_size(context) * -(-context // model_config.block_size) for context in args.context]
    model_config.num_blocks = max(blocks)
    return config


def _batch_size(context):
    return max(1, BATCH_TOKENS // context)


def _name(checkpoint, changes):
    """What a curve is called."""
    others = [f"{key}={str(value).lower()}" for key, value in changes.items() if key != "load_checkpoint"]
    return ", ".join([Path(checkpoint).name, *others])


def measure_context(losses, ids, context, args, name):
    """A point of a curve; see `measure`."""
    starts, predicted = windows(len(ids), context, args.stride, args.context[-1] if args.stride else None)
    total, begin, batch = 0.0, time.time(), _batch_size(context)
    with progress_bar(len(starts) * predicted, f"{name}, {context}", unit=" tokens") as bar:
        for first in range(0, len(starts), batch):
            pieces = np.stack([ids[start:start + context] for start in starts[first:first + batch]])
            found = losses(pieces, predicted)
            total += float(found.sum(dtype=np.float64))
            if not math.isfinite(total):
                row, column = np.argwhere(~np.isfinite(found))[0]
                token = starts[first + row] + context - predicted + column
                check_finite(total, f"{name}, context {context}: token {token} of the text")
            bar.update(len(pieces) * predicted)
    loss = total / (len(starts) * predicted)
    return {"context": context, "perplexity": _exp(loss), "loss": loss, "predicted": len(starts) * predicted,
            "seconds": time.time() - begin}


def _exp(loss):
    """A perplexity; infinite beyond what a float holds."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class TokenLosses:
    """
    The negative log-likelihood of tokens under a model.

    The logits of a long context by a vocabulary of 151,936 are gigabytes: the head is applied to some positions at a
    time.

    Args:
        model (QwenForCausalLM): With `use_past` everything is computed through its cache, which must hold the call.
    """

    def __init__(self, model):
        self.config, self.hidden, self.head = model.config, HiddenStates(model), Head(model)

    def __call__(self, ids, predicted):
        """
        Args:
            ids (np.ndarray): [B, S] int32.
            predicted (int): How many tokens at the end of each row are predicted, less than S.

        Returns:
            np.ndarray, [B, predicted] float32; NaN or infinite where the logits are not finite.
        """
        hidden = self.hidden(*self._inputs(ids)).asnumpy().reshape(*ids.shape, -1)
        hidden = hidden[:, -predicted - 1:-1].reshape(-1, hidden.shape[-1])
        # A norm gives zeros where what it was given has overflowed, and the head then equal logits: no loss to trust.
        lost = ~hidden.any(-1).reshape(len(ids), predicted)
        targets = ids[:, -predicted:].reshape(-1)
        found = [losses_of(self.head(_tensor(hidden[rows])).asnumpy(), targets[rows])
                 for rows in chunks(len(targets), self.config.vocab_size)]
        return np.where(lost, np.float32(np.nan), np.concatenate(found).reshape(len(ids), predicted))

    def _inputs(self, ids):
        batch, length = ids.shape
        lengths = np.full(batch, length, np.int32)
        if not self.config.use_past:
            return _tensor(ids), _tensor(lengths), _tensor(lengths), None, None, None
        size = self.config.block_size
        tables = np.arange(batch * -(-length // size), dtype=np.int32).reshape(batch, -1)
        slots = tables[:, :, None] * size + np.arange(size, dtype=np.int32)
        slots = slots.reshape(batch, -1)[:, :length].reshape(-1)
        # With q_seq_lens every set of kernels reads from the cache what it has just written to it.
        return (_tensor(ids.reshape(1, -1)), _tensor(lengths), _tensor(lengths), _tensor(tables), _tensor(slots),
                _tensor(lengths))


def _tensor(array):
    from mindspore import Tensor
    return Tensor.from_numpy(np.ascontiguousarray(array))


def losses_of(logits, targets):
    """
    Negative log-likelihoods of tokens.

    Not by MindSpore: its `exp` on a CPU is off by up to 1e-5, always downwards, so that a mean would be, too.

    Args:
        logits (np.ndarray): [T, vocab_size] float32.
        targets (np.ndarray): [T], the tokens.

    Returns:
        np.ndarray, [T] float32.
    """
    peaks = logits.max(-1, keepdims=True)
    totals = np.log(np.exp(logits - peaks).sum(-1, dtype=np.float64)) + peaks[:, 0]
    return (totals - logits[np.arange(len(targets)), targets]).astype(np.float32)


def table(report):
    """The report as text: a line for each context, a column for each curve, and how far it is from the first."""
    names = [curve["name"] for curve in report["curves"]]
    rows = [["context", "predicted", *names]]
    for points in zip(*(curve["points"] for curve in report["curves"])):
        first = points[0]["perplexity"]
        cells = [f"{point['perplexity']:.3f}" + (f" {point['perplexity'] / first - 1:+.2%}" if number else "")
                 for number, point in enumerate(points)]
        rows.append([str(points[0]["context"]), str(points[0]["predicted"]), *cells])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("   ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows)


def plot(report, path):
    """Draw perplexity against context length."""
    pyplot = import_pyplot()
    figure, axis = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for curve in report["curves"]:
        axis.plot([point["context"] for point in curve["points"]], [point["perplexity"] for point in curve["points"]],
                  marker="o", label=curve["name"])
    axis.set_xscale("log", base=2)
    if any(point["perplexity"] > 10 * curve["points"][0]["perplexity"]
           for curve in report["curves"] for point in curve["points"]):
        axis.set_yscale("log")
    contexts = [point["context"] for point in report["curves"][0]["points"]]
    axis.set_xticks(contexts, contexts)
    axis.set(xlabel="context in tokens", ylabel="perplexity", title=Path(report["data"]).name)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=150)
