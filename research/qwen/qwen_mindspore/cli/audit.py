"""
Audit the NPU's graphs of a config, on a machine without an NPU:

    python scripts/audit_ascend.py --config configs/predict_qwen_7b.yaml --dtype bfloat16 --soc 910B

The graphs of prefill, of resuming (a prefill of sequences whose beginning is cached) and of decoding are built with the `ascend` kernels, from the shapes of the weights alone, and
read back as MindSpore's front end leaves them; what its Ascend back end fuses after that is not seen, and nothing is
run. The report on stdout names every primitive and the documentation that lists the product, every cast and transpose,
the bytes that a decode step reads, and the tokens per second that the product's memory allows.

Exit code 1, and a line for each finding, where a primitive or a type is not documented for the product, a weight is
read twice in one decode step, a weight is cast or transposed at run time, or a graph does not write its caches.
"""
import argparse
import copy
import json
import math
import os
import re
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PHASES = "prefill", "resume", "decode"
BANDWIDTH = {"910A": 1.2e12, "910B": 1.6e12}  # bytes per second
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int8": 1, "uint8": 1, "qint4x2": 1}

# What the products' documentation says of primitives whose own docstring names no platform, or Ascend alone. Another
# primitive is taken to run on every product if its docstring lists Ascend beside other platforms, and on Atlas A2 if it
# lists Ascend alone, as those do that came with it. Atlas A2 is the 910B, Atlas training products are the 910A.
PRODUCTS = {
    "RmsNorm": (("910B",), "CANN aclnnRmsNorm: Atlas A2, not Atlas training products"),
    "FlashAttentionScore": (("910B",), "CANN aclnnFlashAttentionScore: Atlas A2, not Atlas training products"),
    "ApplyRotaryPosEmb": (("910B",), "CANN aclnnApplyRotaryPosEmb: Atlas A2, not Atlas training products"),
    "ReshapeAndCache": (("910B",), "Transformer Boost ReshapeAndCacheOperation; MindSpore's kernels: ascend910b"),
    "PagedAttention": (("910B",), "Transformer Boost PagedAttentionOperation; MindSpore's kernels: ascend910b"),
    "WeightQuantBatchMatmul": (("910B",), "CANN aclnnWeightQuantBatchMatmulV2: Atlas A2, not Atlas training products"),
    "Muls": (("910A", "910B"), "MindSpore ops.mul, of a tensor and a number"),
    "Divs": (("910A", "910B"), "MindSpore ops.div, of a tensor and a number"),
}
# bfloat16 came with Atlas A2; CANN's pages (as aclnnSilu) list float16 and float32 for Atlas training products.
TYPES_MISSING = {"910A": {"bfloat16"}, "910B": set()}

BOOKKEEPING = {"Constant", "Depend", "Load", "MakeTuple", "TupleGetItem", "UpdateState"}
VIEWS = {"Depend", "ExpandDims", "Load", "MakeTuple", "Reshape", "ScatterUpdate", "TupleGetItem"}
WRITERS = {"ReshapeAndCache", "ScatterUpdate"}


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, help="a YAML, see configs/")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="default: what the YAML says")
    parser.add_argument("--soc", default="910B", choices=sorted(BANDWIDTH))
    parser.add_argument("--layers", type=int, default=2, metavar="N",
                        help="layers to build; what the others cost is what the last of them does (default: 2)")
    parser.add_argument("--batch_size", type=int, default=1, metavar="B", help="sequences decoded at once (default: 1)")
    parser.add_argument("--context_length", type=int, metavar="T",
                        help="tokens of each sequence when the step is counted (default: 2048, or seq_length)")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    args = parser.parse_args(argv)
    if args.layers < 2:
        parser.error("--layers: at least 2, the cost of one layer is a difference")
    for option in ("batch_size", "context_length"):
        if (getattr(args, option) or 1) < 1:
            parser.error(f"--{option}: expected a positive number, found {getattr(args, option)}")
    return args


def load_config(path, dtype=None, soc="910B", batch_size=1):
    """
    The config of a YAML, as the audit builds it.

    Returns:
        QwenConfig with a cache and the `ascend` kernels, without a checkpoint.

    Raises:
        FileNotFoundError, ValueError: No such YAML, or one that describes no Qwen.
    """
    import mindspore as ms

    from qwen_mindspore.model.config import QwenConfig

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config")
    config = QwenConfig.from_pretrained(str(path))
    if dtype is not None:
        config.compute_dtype = config.param_init_type = getattr(ms, dtype)
    settings = {"kernels": "ascend", "soc": soc, "batch_size": batch_size, "use_past": True,
                "checkpoint_name_or_path": None}
    for key, value in settings.items():
        setattr(config, key, value)
    return config


@dataclass
class Value:
    """What a name of the graph stands for: dimensions, -1 where any will do, and a type."""
    shape: tuple
    dtype: str

    @property
    def bytes(self):
        return math.prod(self.shape) * BYTES[self.dtype]

    def __str__(self):
        return f"[{', '.join('?' if size < 0 else str(size) for size in self.shape)}]"


@dataclass
class Node:
    """One operation."""
    primitive: str
    inputs: list
    output: str


@dataclass
class Graph:
    """What MindSpore's front end makes of the model: nodes in order, and the values and parameters by name."""
    nodes: list
    values: dict
    parameters: dict

    @property
    def caches(self):
        """The names of the key and value caches."""
        kinds = ".key_cache", ".value_cache", ".key_scale_cache", ".value_scale_cache"
        return {name for name in self.parameters if name.endswith(kinds)}


def build_graph(config, phase):
    """The graph of a phase, of a model in which no weight takes memory."""
    import mindspore as ms
    from mindspore import Tensor
    from mindspore.graph.api import _cell_graph_executor
    from mindspore.nn.utils import no_init_parameters

    from qwen_mindspore.model.graph import QwenForCausalLM

    forced = os.environ.pop("QWEN_KERNELS", None)
    try:
        with no_init_parameters():
            model = QwenForCausalLM(config)
    finally:
        if forced is not None:
            os.environ["QWEN_KERNELS"] = forced
    model.set_train(False)
    model.add_flags_custom(is_first_iteration=phase != "decode")
    model.init_parameters_data = lambda auto_parallel_mode=False: {}  # what the compiler calls to fill them
    shapes = ([None, 1] if phase == "decode" else [1, None]), [None], [None, None], [None], [None]
    ids, lengths, tables, slots, queries = (Tensor(shape=shape, dtype=ms.int32) for shape in shapes)
    inputs = ids, None, lengths, tables, slots, None, queries if phase == "resume" else None
    model.set_inputs(*inputs)
    # As ms.export does, which then writes a file with every weight in it.
    phase, _ = _cell_graph_executor.compile(model, *inputs, phase="export.mindir", do_convert=False)
    return read_graph(_cell_graph_executor._get_func_graph_proto(model, phase, "mind_ir"))


def read_graph(mindir):
    """The graph that a serialised MindIR holds."""
    from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

    model = ModelProto.FromString(mindir)
    if model.functions:
        raise ValueError("the graph has control flow, which this audit can't read")
    primitives = {primitive.name: primitive.op_type for primitive in model.primitives}
    prefix = f"{model.graph.name}:"

    def value(tensor):
        dtype = TensorProto.DataType.Name(tensor.data_type).lower()
        return Value(tuple(tensor.dims), "float32" if dtype == "float" else dtype)

    parameters = {tensor.name.removeprefix(prefix): value(tensor) for tensor in model.graph.parameter}
    values = {**parameters, **{entry.name.removeprefix(prefix): value(entry.tensor[0]) for entry in model.graph.input}}
    nodes = []
    for proto in model.graph.node:
        kind = proto.op_type.removeprefix("REF::")
        output = proto.output[0].removeprefix(prefix)
        nodes.append(Node(primitives.get(kind, kind), [name.removeprefix(prefix) for name in proto.input], output))
        for attribute in proto.attribute:
            if attribute.name == "shape" and attribute.tensors:
                values[output] = value(attribute.tensors[0])
    return Graph(nodes, values, parameters)


def documentation(primitive):
    """(products, source): the products that the documentation of a primitive lists, and where it stands."""
    if primitive in PRODUCTS:
        return PRODUCTS[primitive]
    from mindspore import ops
    from mindspore.ops import auto_generate
    from mindspore.ops.operations import _sequence_ops

    for module in (ops.operations, auto_generate, ops, _sequence_ops):
        text = getattr(getattr(module, primitive, None), "__doc__", None) or ""
        source = f"MindSpore ops.{primitive}"
        referred = re.search(r"Refer to :func:`mindspore\.ops\.(\w+)`", text)
        if referred and "Supported Platforms:" not in text:
            function = getattr(ops, referred[1], None) or getattr(auto_generate, referred[1], None)
            text, source = getattr(function, "__doc__", None) or "", f"MindSpore ops.{referred[1]}"
        platforms = re.search(r"Supported Platforms:\s+((?:``\w+``\s*)+)", text)
        if platforms:
            names = re.findall(r"\w+", platforms[1])
            products = () if "Ascend" not in names else ("910B",) if names == ["Ascend"] else ("910A", "910B")
            return products, f"{source}: {' '.join(names)}"
    return (), "no documentation found"


def count_primitives(graph):
    """How often each primitive stands in the graph, those that only arrange it left out."""
    return Counter(node.primitive for node in graph.nodes if node.primitive not in BOOKKEEPING)


def count_moves(graph):
    """How often each kind of cast and transpose stands in the graph."""
    moves = Counter()
    for node in graph.nodes:
        if node.primitive in ("Cast", "Transpose"):
            source, target = graph.values.get(node.inputs[0], Value((), "constant")), graph.values[node.output]
            types = source.dtype if node.primitive == "Transpose" else f"{source.dtype} to {target.dtype}"
            moves[f"{node.primitive} {types} {target}"] += 1
    return moves


def trace(graph):
    """
    What happens to the parameters.

    Returns:
        ({parameter: the primitives that read all of it, or rows of it, or a copy of it}, names of those written).
    """
    held = {name: {name} for name in graph.parameters}  # value -> the parameters that it is, holds or is a copy of
    reads, written = defaultdict(list), set()
    for node in graph.nodes:
        sources = node.inputs[:1] if node.primitive in ("Depend", "Load") else node.inputs
        parameters = set().union(*(held.get(name, ()) for name in sources))
        if node.primitive == "UpdateState" or not parameters:
            continue
        if node.primitive in WRITERS:
            written |= parameters
        elif node.primitive not in VIEWS:
            for name in sorted(parameters):
                reads[name].append(node.primitive)
        if node.primitive in VIEWS | {"Cast", "Transpose"}:
            held[node.output] = parameters
        elif node.primitive == "Gather":  # rows of an embedding are activations, rows of a cache are the cache
            held[node.output] = parameters & graph.caches
    return reads, written


def count_bytes(graph, config, context_length):
    """
    {"weights", "context": bytes that there are of the weights and, for `context_length` tokens of each sequence, of the
    caches; "weights_read", "context_read": bytes that one decode step reads of them}.
    """
    reads, _ = trace(graph)
    tokens = config.batch_size * context_length
    total = Counter(weights=0, weights_read=0, context=0, context_read=0)
    for name, value in graph.parameters.items():
        if name in graph.caches:
            a_token = value.shape[2:] if len(value.shape) == 4 else value.shape[1:]  # [blocks, block_size, H, D], or rows
            context = tokens * math.prod(a_token) * BYTES[value.dtype]
            total["context"] += context
            total["context_read"] += len(reads[name]) * context
        else:
            rows = config.batch_size * value.bytes // value.shape[0]
            total["weights"] += value.bytes
            total["weights_read"] += sum(rows if reader == "Gather" else value.bytes for reader in reads[name])
    return total


def scale(less, more, layers, built):
    """{name: {"layer": count of one layer, "all": of `layers`}} from the counts of built - 1 and of `built` layers."""
    return {name: {"layer": more[name] - less[name],
                   "all": more[name] + (layers - built) * (more[name] - less[name])} for name in more}


def find_faults(graph, phase, soc):
    """One line for each fault of a graph, but for undocumented primitives."""
    reads, written = trace(graph)
    missing = TYPES_MISSING[soc] & {value.dtype for value in graph.values.values()}
    faults = [f"{phase}: {dtype} is not documented for the {soc}" for dtype in sorted(missing)]
    for name in graph.parameters:
        every = re.sub(r"\.layers\.\d+\.", ".layers.*.", name)
        if name in graph.caches:
            if name not in written:
                faults.append(f"{phase}: {every} is not written")
            continue
        if graph.parameters[name].dtype == "uint8" and set(reads[name]) - {"Gather"}:
            faults.append(f"{phase}: the weight of {every.rpartition('.')[0]} is dequantised at run time")
            continue
        for copier in ("Cast", "Transpose"):
            if copier in reads[name]:
                faults.append(f"{phase}: {copier} of the weight {every} at run time")
        readers = [reader for reader in reads[name] if reader not in ("Cast", "Gather", "Transpose")]
        if phase == "decode" and len(readers) > 1:
            faults.append(f"{phase}: the weight {every} is read {len(readers)} times ({', '.join(readers)})")
    return list(dict.fromkeys(faults))


def audit(config, layers=2, context_length=None, progress=lambda text: None):
    """
    Build the graphs with `layers` layers and with one less, and count for all layers of the config.

    Args:
        config (QwenConfig): See `load_config`.
        layers (int): From 2 on.
        context_length (int): Tokens of each sequence in the decode step whose bytes are counted. Default: 2048, or
            `seq_length`.
        progress (function): Is told what goes on.

    Returns:
        dict, the report: `findings` is empty if all is well.
    """
    context_length = context_length or min(2048, config.seq_length)
    primitives, moves, findings = {}, {}, []
    for phase in PHASES:
        graphs = []
        for number in (layers - 1, layers):
            progress(f"building the {phase} graph, layers: {number}")
            part = copy.deepcopy(config)
            part.num_layers = number
            graphs.append(build_graph(part, phase))
        for counted, count in ((primitives, count_primitives), (moves, count_moves)):
            for name, counts in scale(*map(count, graphs), config.num_layers, layers).items():
                counted.setdefault(name, {})[phase] = counts
        findings += find_faults(graphs[-1], phase, config.soc)
    for name, row in primitives.items():
        row["products"], row["source"] = documentation(name)
        if config.soc not in row["products"]:
            findings.append(f"{', '.join(phase for phase in PHASES if phase in row)}: {name} is not documented for the "
                            f"{config.soc} ({row['source']})")
    sizes = scale(*(count_bytes(graph, config, context_length) for graph in graphs), config.num_layers, layers)
    sizes = {name: counts["all"] for name, counts in sizes.items()}
    step = sizes["weights_read"] + sizes["context_read"]
    return {"soc": config.soc, "dtype": str(config.compute_dtype).lower(), "layers": config.num_layers,
            "layers_built": layers, "batch_size": config.batch_size, "context_length": context_length,
            "primitives": primitives, "casts_and_transposes": moves, "bytes": sizes,
            "tokens_per_second": {soc: roofline(step, config.batch_size, soc) for soc in BANDWIDTH},
            "findings": findings}


def roofline(step_bytes, batch_size, soc):
    """Tokens per second of decode steps that do nothing but read `step_bytes` each at the product's bandwidth."""
    return batch_size * BANDWIDTH[soc] / step_bytes


def render(report):
    """The report as text."""
    lines = ["{dtype}, {soc}, {layers} layers; {layers_built} built, the counts are those of all".format(**report), "",
             "{:22}{}  {:11} source".format("primitive", "".join(f"{phase:>8} a layer" for phase in PHASES), "documented")]
    for name, row in sorted(report["primitives"].items()):
        lines.append(f"{name:22}{_columns(row)}  {' '.join(row['products']) or 'no':11} {row['source']}")
    lines += ["", "casts and transposes"]
    lines += [f"{name:38}{_columns(row)}" for name, row in sorted(report["casts_and_transposes"].items())]
    sizes = report["bytes"]
    step = sizes["weights_read"] + sizes["context_read"]
    lines += ["", "one decode step, batch {batch_size}, {context_length} tokens of context".format(**report)]
    lines += [f"{name:9}{sizes[name] / 1e9:10.3f} GB, of which it reads {sizes[name + '_read'] / 1e9:.3f} GB"
              for name in ("weights", "context")]
    lines += [f"it reads {step / 1e9:10.3f} GB, {step / sizes['weights']:.3f} of the weights"]
    lines += [f"{soc}     {rate:10.1f} tokens/s at most, at {BANDWIDTH[soc] / 1e12} TB/s"
              for soc, rate in report["tokens_per_second"].items()]
    lines += ["", *(f"finding: {finding}" for finding in report["findings"] or ["none"])]
    return "\n".join(lines)


def _columns(row):
    counts = [row.get(phase, {"all": 0, "layer": 0}) for phase in PHASES]
    return "".join(f"{count['all']:8}{count['layer']:8}" for count in counts)


def main(argv=None):
    """The command. Returns the exit code: 1 where there are findings, 2 where the audit can't be made."""
    from qwen_mindspore.cli.options import stdout_for_answers

    args = parse_args(argv)
    os.environ.setdefault("GLOG_v", "3")
    with tempfile.TemporaryDirectory() as logs, stdout_for_answers(verbose=False) as answers:
        os.environ.setdefault("LOG_MF_PATH", logs)
        try:
            config = load_config(args.config, args.dtype, args.soc, args.batch_size)
            report = audit(config, args.layers, args.context_length,
                           lambda text: print(f"audit_ascend: {text}", file=sys.stderr, flush=True))
        except (ValueError, OSError) as error:
            print(f"audit_ascend: {error}", file=sys.stderr)
            return 2
        print(json.dumps(report, indent=2) if args.json else render(report), file=answers)
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "research/qwen"))
    sys.exit(main())
