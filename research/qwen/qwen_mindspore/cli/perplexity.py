"""
Perplexity of a text at given context lengths, for any config and checkpoint, quantised or not:

    python scripts/perplexity.py --config Y --load_checkpoint C --data TEXT --context 512,1024,2048

The text is cut into pieces of a context, and each token of a piece is predicted from what stands before it there. With
--stride N a piece begins every N tokens and its last N are predicted, which then have at least context - N tokens
before them; and every context predicts the same tokens. --compare adds a curve with other settings of the model, or
of another checkpoint:

    --compare load_checkpoint=int4 --compare use_dynamic_ntk=false,use_logn_attn=false --plot FILE.png
"""
import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "research/qwen")]

import numpy as np  # noqa: E402

from qwen_mindspore.bench.report import import_pyplot, output_problem  # noqa: E402
from qwen_mindspore.cli.options import (  # noqa: E402
    add_common_options,
    build_model,
    build_tokenizer,
    load_config,
    positive_int,
    set_context,
    stdout_for_answers,
)
from qwen_mindspore.text.files import encode_texts, read_texts  # noqa: E402

BATCH_TOKENS = 4096  # that go through the model at once, unless a context is longer
LOGIT_BYTES = 2**27  # of the logits that are held at once


def parse_args(argv=None):
    """The command line; wrong options end the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser, "predict_qwen_7b.yaml")
    parser.add_argument("--data", type=Path, required=True, metavar="TEXT",
                        help='.jsonl with {"text": ...} lines, or plain text')
    parser.add_argument("--context", type=_contexts, default=[512, 1024, 2048], metavar="N,...",
                        help="tokens of a piece (default: 512,1024,2048)")
    parser.add_argument("--stride", type=positive_int, metavar="N",
                        help="tokens from one piece to the next (default: the context, so that pieces don't overlap)")
    parser.add_argument("--max_tokens", type=positive_int, metavar="N", help="take so many tokens of the text only")
    parser.add_argument("--compare", type=_changes, action="append", default=[], metavar="KEY=VALUE,...",
                        help="another curve, with these settings of the model's config, or load_checkpoint=C")
    parser.add_argument("--use_past", action="store_true",
                        help="compute through the key/value cache, as a quantised cache always is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--plot", type=Path, metavar="FILE.png",
                        help="draw perplexity against context length (needs matplotlib)")
    args = parser.parse_args(argv)
    problem = output_problem(args.json, args.plot)
    if args.stride and args.stride > min(args.context):
        problem = f"--stride {args.stride}: more than the context {min(args.context)} leaves tokens out"
    if problem:
        parser.error(problem)
    return args


def _contexts(text):
    contexts = sorted({positive_int(part) for part in text.split(",")})
    if contexts[0] < 2:
        raise argparse.ArgumentTypeError("expected at least 2 tokens: the first of a piece is not predicted")
    return contexts


def _changes(text):
    """{key: value} of KEY=VALUE,...; values as a YAML has them."""
    import yaml

    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and equals and value for key, equals, value in pairs):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE,KEY=VALUE, found {text}")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


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
        args (argparse.Namespace): See `parse_args`.

    Returns:
        dict, what --json writes: data, tokens of it, stride, and curves, each with name, checkpoint, changes and
        points: context, perplexity, loss (mean negative log-likelihood, in nats), predicted (tokens), seconds.

    Raises:
        ValueError: The text is too short, or options and checkpoint don't fit each other.
        OSError: A file is missing.
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
            print(f"perplexity: {curve['name']}, {context}: {point['perplexity']:.3f}", file=sys.stderr, flush=True)
        del losses
    return {"data": str(args.data), "tokens": len(ids), "stride": args.stride, "curves": curves}


def make_config(args, changes):
    """
    The config of a curve, with room for the longest context.

    Raises:
        ValueError: A setting that a model's config does not have.
    """
    from qwen_mindspore.model.config import QwenConfig

    changes = dict(changes)
    config = load_config(argparse.Namespace(
        **{**vars(args), "load_checkpoint": str(changes.pop("load_checkpoint", args.load_checkpoint))}))
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
    """A point of a curve, see `measure`."""
    from tqdm import tqdm

    starts, predicted = windows(len(ids), context, args.stride, args.context[-1] if args.stride else None)
    total, begin, batch = 0.0, time.time(), _batch_size(context)
    with tqdm(total=len(starts) * predicted, desc=f"{name}, {context}", unit=" tokens", file=sys.stderr,
              mininterval=0.5) as bar:
        for first in range(0, len(starts), batch):
            pieces = np.stack([ids[start:start + context] for start in starts[first:first + batch]])
            total += float(losses(pieces, predicted).sum(dtype=np.float64))
            bar.update(len(pieces) * predicted)
    loss = total / (len(starts) * predicted)
    return {"context": context, "perplexity": math.exp(loss), "loss": loss, "predicted": len(starts) * predicted,
            "seconds": time.time() - begin}


class TokenLosses:
    """
    The negative log-likelihood of tokens under a model.

    The logits of a long context by a vocabulary of 151,936 are gigabytes: the head is applied to some positions at a
    time.

    Args:
        model (QwenForCausalLM): With `use_past` everything is computed through its cache, which must hold the call.
    """

    def __init__(self, model):
        self.config, self.layer_table = model.config, model.transformer.layer_table
        self.hidden, self.loss = _build_cells(model)
        self.rows = max(1, LOGIT_BYTES // (4 * model.config.vocab_size))

    def __call__(self, ids, predicted):
        """
        Args:
            ids (np.ndarray): [B, S] int32.
            predicted (int): How many tokens at the end of each row are predicted, less than S.

        Returns:
            np.ndarray, [B, predicted] float32.
        """
        place = None if self.layer_table is None else self.layer_table.place(refresh=True)
        hidden = self.hidden(*self._inputs(ids), place).asnumpy().reshape(*ids.shape, -1)
        hidden = hidden[:, -predicted - 1:-1].reshape(-1, hidden.shape[-1])
        targets = ids[:, -predicted:].reshape(-1)
        found = [self.loss(_tensor(hidden[row:row + self.rows]), _tensor(targets[row:row + self.rows])).asnumpy()
                 for row in range(0, len(targets), self.rows)]
        return np.concatenate(found).reshape(len(ids), predicted)

    def _inputs(self, ids):
        batch, length = ids.shape
        lengths = np.full(batch, length, np.int32)
        if not self.config.use_past:
            return _tensor(ids), _tensor(lengths), None, None
        size = self.config.block_size
        tables = np.arange(batch * -(-length // size), dtype=np.int32).reshape(batch, -1)
        slots = tables[:, :, None] * size + np.arange(size, dtype=np.int32)
        slots = slots.reshape(batch, -1)[:, :length].reshape(-1)
        return _tensor(ids.reshape(1, -1)), _tensor(lengths), _tensor(tables), _tensor(slots)


def _tensor(array):
    from mindspore import Tensor
    return Tensor.from_numpy(np.ascontiguousarray(array))


def _build_cells(model):
    """The two graphs: ids to hidden states [T, hidden], and those with the tokens that follow to losses [T]."""
    import mindspore as ms
    from mindspore import Tensor, nn, ops

    class Hidden(nn.Cell):
        """All the model but its head; positions of a call are packed, see QwenForCausalLM."""

        def __init__(self):
            super().__init__(auto_prefix=False)
            self.transformer = model.transformer

        def construct(self, ids, lengths, block_tables, slot_mapping, layer_table):
            # With q_seq_lens every set of kernels reads from the cache what it has just written to it.
            queries = None if slot_mapping is None else lengths
            return self.transformer(ids, lengths, lengths, block_tables, slot_mapping, queries, layer_table)

    class Loss(nn.Cell):
        """The head and the losses."""

        def __init__(self):
            super().__init__(auto_prefix=False)
            self.lm_head, self.kernels = model.lm_head, model.kernels

        def construct(self, hidden, targets):
            logits = ops.cast(self.kernels.linear(hidden, self.lm_head.weights()), ms.float32)
            chosen = ops.gather_elements(logits, 1, ops.expand_dims(targets, -1))
            return ops.logsumexp(logits, -1) - ops.reshape(chosen, (-1,))

    def tensor(dtype, *shape):
        return Tensor(shape=shape, dtype=dtype)

    hidden, loss = Hidden(), Loss()
    paged = model.config.use_past
    if paged and model.kernels.jit_config:
        hidden.set_jit_config(model.kernels.jit_config)
    tables, slots = (tensor(ms.int32, None, None), tensor(ms.int32, None)) if paged else (None, None)
    place = None if model.transformer.layer_table is None else tensor(ms.int64, 2)
    hidden.set_inputs(tensor(ms.int32, None, None), tensor(ms.int32, None), tables, slots, place)
    loss.set_inputs(tensor(model.kernels.dtype, None, model.config.hidden_size), tensor(ms.int32, None))
    for cell in (hidden, loss):
        cell.set_train(False)
    return hidden, loss


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


def main(argv=None):
    """The command. Returns the exit code."""
    args = parse_args(argv)
    if not args.verbose:
        os.environ.setdefault("GLOG_v", "3")
    with stdout_for_answers(args.verbose) as answers:
        try:
            report = measure(args)
        except KeyboardInterrupt:
            print("perplexity: interrupted", file=sys.stderr)
            return 1
        except (ValueError, OSError) as error:
            print(f"perplexity: {error}", file=sys.stderr)
            return 1
        print(table(report), file=answers)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(report, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
