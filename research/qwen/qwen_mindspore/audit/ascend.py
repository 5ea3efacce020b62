"""
What a person without an NPU can know of its graphs: documented primitives, copies, bytes that a step reads, faults.
"""
import copy
import math
import re
from collections import Counter, defaultdict

import mindspore as ms

from qwen_mindspore.audit.graph import BYTES, Value, build_graph
from qwen_mindspore.common.mindspore_internals import documented_platforms
from qwen_mindspore.model.config import QwenConfig

__all__ = ["BANDWIDTH", "audit", "documentation", "load_config", "render", "roofline"]

PHASES = "prefill", "resume", "decode"
BANDWIDTH = {"910A": 1.2e12, "910B": 1.6e12}  # bytes per second

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


def load_config(path, dtype=None, soc="910B", batch_size=1):
    """
    The config of a YAML, as the audit builds it.

    Returns:
        QwenConfig with a cache and the `ascend` kernels, without a checkpoint.

    Raises:
        FileNotFoundError, ValueError: No such YAML, or one that describes no Qwen.
    """
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


def documentation(primitive):
    """(products, source): the products that the documentation of a primitive lists, and where it stands."""
    if primitive in PRODUCTS:
        return PRODUCTS[primitive]
    found = documented_platforms(primitive)
    if found is None:
        return (), "no documentation found"
    names, source = found
    products = () if "Ascend" not in names else ("910B",) if names == ["Ascend"] else ("910A", "910B")
    return products, f"{source}: {' '.join(names)}"


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
            # [blocks, block_size, H, D], or rows
            a_token = value.shape[2:] if len(value.shape) == 4 else value.shape[1:]
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
            faults.append(f"{phase}: the weight of {every.rpartition('.')[0]} is dequantized at run time")
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
             "{:22}{}  {:11} source".format("primitive", "".join(f"{phase:>8} a layer" for phase in PHASES),
                                              "documented")]
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
