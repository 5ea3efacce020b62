"""The layers of a Qwen, in MindSpore's graph mode: ids in, hidden states out."""
import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import initializer

from qwen_mindspore.kernels.weights import weights_of
from qwen_mindspore.model.linear import build_embedding, build_linear
from qwen_mindspore.model.rotary import RotaryTables

__all__ = ["QwenModel"]


class RMSNorm(nn.Cell):
    """The weight of x [T, hidden] -> [T, hidden]."""

    def __init__(self, config, kernels):
        super().__init__()
        self.weight = Parameter(initializer("ones", (config.hidden_size,), kernels.dtype), name="weight")
        self.epsilon = config.rms_norm_eps

    def weights(self):
        """What the kernels' norms take: (weight, epsilon)."""
        return self.weight, self.epsilon


class Attention(nn.Cell):
    """Multi-head attention with biased q, k and v, and a paged key/value cache when `use_past`."""

    def __init__(self, config, kernels, name):
        super().__init__()
        width = config.num_heads * config.kv_channels
        self.wq = build_linear(config, kernels, f"{name}.wq", config.hidden_size, width, has_bias=True)
        self.wk = build_linear(config, kernels, f"{name}.wk", config.hidden_size, width, has_bias=True)
        self.wv = build_linear(config, kernels, f"{name}.wv", config.hidden_size, width, has_bias=True)
        self.wo = build_linear(config, kernels, f"{name}.wo", width, config.hidden_size)
        if config.use_past:
            shape = kernels.cache_shape(config)
            dtype = ms.uint8 if config.use_cache_quantization else kernels.dtype
            self.key_cache = _zero_cache("key_cache", shape, dtype)
            self.value_cache = _zero_cache("value_cache", shape, dtype)
        self.has_cache_scales = config.use_past and config.use_cache_quantization
        if self.has_cache_scales:
            shape = kernels.cache_scales_shape(config)
            self.key_scale_cache = _zero_cache("key_scale_cache", shape, ms.float32)
            self.value_scale_cache = _zero_cache("value_scale_cache", shape, ms.float32)

    def linears(self):
        """The linears, in the kernels' order."""
        return self.wq, self.wk, self.wv, self.wo

    def caches(self):
        """What the kernels' layers take of the cache."""
        if self.has_cache_scales:
            return self.key_cache, self.value_cache, self.key_scale_cache, self.value_scale_cache
        return self.key_cache, self.value_cache


class FeedForward(nn.Cell):
    """w2(w1(x) * silu(w3(x))): Qwen gates by its `mlp.w2`, which MindFormers' checkpoints call w3."""

    def __init__(self, config, kernels, name):
        super().__init__()
        self.w1 = build_linear(config, kernels, f"{name}.w1", config.hidden_size, config.ffn_hidden_size)
        self.w2 = build_linear(config, kernels, f"{name}.w2", config.ffn_hidden_size, config.hidden_size)
        self.w3 = build_linear(config, kernels, f"{name}.w3", config.hidden_size, config.ffn_hidden_size)

    def linears(self):
        """The linears, in the kernels' order."""
        return self.w1, self.w2, self.w3


class DecoderLayer(nn.Cell):
    """x [T, hidden] -> [T, hidden]: attention, then feed-forward, each after a norm and beside a residual."""

    def __init__(self, config, kernels, name):
        super().__init__()
        self.attention_norm = RMSNorm(config, kernels)
        self.attention = Attention(config, kernels, f"{name}.attention")
        self.ffn_norm = RMSNorm(config, kernels)
        self.feed_forward = FeedForward(config, kernels, f"{name}.feed_forward")
        self.kernels = kernels
        self.collected = None
        self.caches = self.attention.caches() if config.use_past else ()
        self.is_first_iteration = True

    def collect(self):
        """
        Take what the kernels need of the cells below, as they are now: (attention, feed_forward), see `kernels`. Not in
        the graph, where each call costs time to compile, for each layer anew.
        """
        halves = (self.attention_norm, self.attention), (self.ffn_norm, self.feed_forward)
        self.collected = tuple((norm.weights(), *(weights_of(linear, self.kernels) for linear in half.linears()))
                               for norm, half in halves)

    def construct(self, x, rotation, input_ids, slot_mapping, layout):
        if slot_mapping is None:
            return self.kernels.layer_whole(x, *self.collected, rotation, input_ids)
        return self.kernels.layer(x, *self.collected, rotation, self.caches, slot_mapping, layout,
                                  self.is_first_iteration)


class QwenModel(nn.Cell):
    """ids -> hidden states [T, hidden] after the last norm. See `CausalLM` for the inputs."""

    def __init__(self, config, kernels):
        super().__init__()
        self.wte = build_embedding(config, kernels)
        self.dropout = nn.Dropout(p=config.emb_dropout_prob)
        self.layers = nn.CellList([DecoderLayer(config, kernels, f"transformer.layers.{i}")
                                   for i in range(config.num_layers)])
        self.ln_f = RMSNorm(config, kernels)
        self.kernels = kernels
        self.tables = RotaryTables(config)
        self.is_first_iteration = True
        self.layer_table = None
        self.ntk_cache = None
        if config.use_past and self.tables.thresholds is not None:
            # The NTK factor of a sequence is fixed by its prompt and belongs to its keys: it is kept with them,
            # under the sequence's first block.
            self.ntk_cache = _zero_cache("ntk_cache", (config.cache_blocks,), ms.int32)
            self.scatter = ops.ScatterUpdate()

    def collect(self):
        """Take what the kernels need of the layers, as they are now; all at once where the kernels can."""
        for layer in self.layers:
            layer.collect()
        halves = [layer.collected for layer in self.layers]
        self.layer_table = None
        if self.kernels.runs_at_once(halves):
            self.layer_table = self.kernels.layer_table([(*layer.collected, layer.caches) for layer in self.layers])

    def linears(self):
        """The linears of all layers, and the adapters that they have, as they are now."""
        linears = [linear for layer in self.layers for half in (layer.attention, layer.feed_forward)
                   for linear in half.linears()]
        return linears + [linear.adapter for linear in linears if getattr(linear, "adapter", None) is not None]

    def construct(self, input_ids, prompt_lengths, batch_valid_length, block_tables, slot_mapping, q_seq_lens,
                  layer_table=None):
        ids = ops.reshape(input_ids, (-1,))
        if slot_mapping is None:
            positions = ops.reshape(ops.cumsum(ops.ones_like(input_ids), 1) - 1, (-1,))
            rows = ops.reshape(ops.cumsum(ops.ones_like(input_ids), 0) - 1, (-1,))
        elif self.is_first_iteration:
            positions, rows = _packed_positions(ids, batch_valid_length, q_seq_lens)
        else:
            positions, rows = batch_valid_length - 1, None
        factors = self._ntk_factors(prompt_lengths, block_tables)
        rotation = self._rotation(positions, rows, factors)
        x = self.dropout(self.wte(ids))
        if layer_table is None:
            layout = self._layout(batch_valid_length, block_tables, slot_mapping, q_seq_lens, positions, rows)
            for layer in self.layers:
                x = layer(x, rotation, input_ids, slot_mapping, layout)
        elif slot_mapping is None:
            x = self.kernels.layers_whole(x, layer_table, rotation, input_ids)
        else:
            queries = batch_valid_length if self.is_first_iteration and q_seq_lens is None else q_seq_lens
            x = self.kernels.layers(x, layer_table, rotation, slot_mapping, block_tables, batch_valid_length, queries)
        return self.kernels.rms_norm(x, *self.ln_f.weights())

    def _layout(self, lengths, block_tables, slot_mapping, queries, positions, rows):
        """What the kernels' layers share."""
        if slot_mapping is None:
            return ()
        if self.is_first_iteration:
            return self.kernels.prefill_layout(block_tables, lengths, queries, positions, rows)
        return self.kernels.decode_layout(block_tables, lengths)

    def _ntk_factors(self, prompt_lengths, block_tables):
        """The index [B] of each sequence's NTK factor; None where there is but one."""
        if self.tables.thresholds is None or self.training:
            return None
        if block_tables is not None and not self.is_first_iteration:
            return ops.gather(self.ntk_cache, block_tables[:, 0], 0)
        above = ops.expand_dims(prompt_lengths, -1) > self.tables.thresholds
        factors = ops.cast(ops.cast(above, ms.int32).sum(-1), ms.int32)
        if block_tables is not None:
            self.scatter(self.ntk_cache, block_tables[:, 0], factors)
        return factors

    def _rotation(self, positions, rows, factors):
        """
        What the kernels' layers rotate keys by, and queries: cos, sin, query cos, query sin [T, D / 2]. LogN scales the
        query; rotation is linear, so that the scale is folded into the query's.
        """
        index = positions
        if factors is not None:
            index = positions + self.tables.length * (factors if rows is None else ops.gather(factors, rows, 0))
        cos, sin = ops.gather(self.tables.cos, index, 0), ops.gather(self.tables.sin, index, 0)
        if self.tables.logn is None or self.training:
            return cos, sin, cos, sin
        logn = ops.expand_dims(ops.gather(self.tables.logn, positions, 0), -1)
        return cos, sin, cos * logn, sin * logn


def _zero_cache(name, shape, dtype):
    """A parameter of zeros; on a CPU its memory is only taken page by page, as it is written to."""
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


def _packed_positions(ids, lengths, queries):
    """Position [T] in its own sequence, and sequence [T], of each token of packed sequences."""
    ends = ops.cumsum(lengths if queries is None else queries, 0)
    order = ops.cumsum(ops.ones_like(ids), 0) - 1
    rows = ops.cast(ops.expand_dims(order, -1) >= ops.expand_dims(ends, 0), ms.int32).sum(-1)
    return order - ops.gather(ends - lengths, rows, 0), rows
