"""Qwen (first generation) as a MindFormers model, in MindSpore's graph mode, on an Ascend NPU or a CPU."""
import contextlib
import copy

import mindspore as ms
from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.modules.block_tables import BlockTables
from mindformers.tools.logger import logger
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from qwen_mindspore.text import processor as qwen_processor  # noqa: F401  registered with the model, so that one import serves a whole YAML
from qwen_mindspore.text import tokenizer as qwen_tokenizer  # noqa: F401
from qwen_mindspore.model.load import load_weights, prepare_weights
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.generate.loop import QwenGeneration
from qwen_mindspore.kernels import build_kernels
from qwen_mindspore.model.linear import build_embedding, build_linear
from qwen_mindspore.checkpoint.packing import agreed_quantization
from qwen_mindspore.model.rotary import RotaryTables

__all__ = ["QwenForCausalLM", "QwenModel"]


class RMSNorm(nn.Cell):
    """The weight of x [T, hidden] -> [T, hidden]."""

    def __init__(self, config, kernels):
        super().__init__()
        self.weight = Parameter(initializer("ones", (config.hidden_size,), kernels.dtype), name="weight")
        self.epsilon = config.rms_norm_eps

    def weights(self):
        """What the kernels' norms take."""
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

    def weights(self):
        """What the kernels' layers take, besides the norm."""
        return self.wq.weights(), self.wk.weights(), self.wv.weights(), self.wo.weights()

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

    def weights(self):
        """What the kernels' layers take, besides the norm."""
        return self.w1.weights(), self.w2.weights(), self.w3.weights()


class DecoderLayer(nn.Cell):
    """x [T, hidden] -> [T, hidden]: attention, then feed-forward, each after a norm and beside a residual."""

    def __init__(self, config, kernels, name):
        super().__init__()
        self.attention_norm = RMSNorm(config, kernels)
        self.attention = Attention(config, kernels, f"{name}.attention")
        self.ffn_norm = RMSNorm(config, kernels)
        self.feed_forward = FeedForward(config, kernels, f"{name}.feed_forward")
        self.kernels = kernels
        # Collected here and not in the graph, where each call costs time to compile, for each layer anew.
        self.weights = ((self.attention_norm.weights(), *self.attention.weights()),
                        (self.ffn_norm.weights(), *self.feed_forward.weights()))
        self.caches = self.attention.caches() if config.use_past else ()
        self.is_first_iteration = True

    def construct(self, x, rotation, input_ids, slot_mapping, layout):
        if slot_mapping is None:
            return self.kernels.layer_whole(x, *self.weights, rotation, input_ids)
        return self.kernels.layer(x, *self.weights, rotation, self.caches, slot_mapping, layout, self.is_first_iteration)


class QwenModel(nn.Cell):
    """ids -> hidden states [T, hidden] after the last norm. See `QwenForCausalLM` for the inputs."""

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
        if kernels.runs_layers_at_once:
            self.layer_table = kernels.layer_table([(*layer.weights, layer.caches) for layer in self.layers])
        self.ntk_cache = None
        if config.use_past and self.tables.thresholds is not None:
            # The NTK factor of a sequence is fixed by its prompt and belongs to its keys: it is kept with them,
            # under the sequence's first block.
            self.ntk_cache = _zero_cache("ntk_cache", (config.cache_blocks,), ms.int32)
            self.scatter = ops.ScatterUpdate()

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


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class QwenForCausalLM(QwenGeneration, PreTrainedModel):
    """
    Qwen with its language-model head: a loss in training, logits otherwise.

    Args:
        config (QwenConfig or LlamaConfig): A plain LlamaConfig is read as the first MindFormers port of Qwen read
            it, see `QwenConfig.from_llama_config`. With `checkpoint_name_or_path` the weights are loaded.

    Inputs:
        input_ids (Tensor): int32. [B, S] in training and without `block_tables`; [1, T] in prefill, the prompts
            packed one behind the other; [B, 1] in decoding.
        labels (Tensor): int32 [B, S], `ignore_token_id` where nothing is to be learnt; position i is learnt from
            what stands before it. Default in training: `input_ids`, without padding.
        batch_valid_length (Tensor): int32, B values: tokens of each sequence, those of this call included.
        block_tables (Tensor): int32 [B, blocks], see `kernels`. Only with `use_past`.
        slot_mapping (Tensor): int32 [T], the cache slot of each token of this call. Only with `use_past`.
        prompt_lengths (Tensor): int32 [B], the lengths that dynamic NTK goes by; in decoding it goes by the prefill's.
            Default: `batch_valid_length`, or S.
        q_seq_lens (Tensor): int32 [B], in prefill: tokens of each sequence in this call, its last ones; what stands
            before them is in the cache. Default: all, `batch_valid_length`.

    Outputs:
        In training the mean loss, a float32 scalar. Otherwise float32 logits: [B, vocab_size] of each sequence's
        last token where `batch_valid_length` is given, else [B, S, vocab_size].

    As with any MindFormers model with `use_past`, prefill and decoding are two graphs: `generate` switches between
    them by `phase` and `add_flags_custom`, and so must who calls the model directly.

    Source: https://huggingface.co/Qwen/Qwen-7B/blob/main/modeling_qwen.py
    """

    config_class = QwenConfig
    base_model_prefix = "transformer"

    def __init__(self, config):
        if ms.get_context("mode") != ms.GRAPH_MODE:
            logger.info("Qwen runs in graph mode: the context's mode is set to GRAPH_MODE.")
            ms.set_context(mode=ms.GRAPH_MODE)
        config = copy.copy(QwenConfig.from_llama_config(config))
        config.quantization = agreed_quantization(config.quantization, config.checkpoint_name_or_path)
        config.validate()
        super().__init__(config, auto_prefix=True)
        kernels = build_kernels(config)
        if kernels.dtype != config.compute_dtype:
            logger.warning("This device computes in %s, whatever the type of the config (%s) and of the checkpoint.",
                           kernels.dtype, config.compute_dtype)
        # Weights that a checkpoint brings are not drawn at random first.
        with no_init_parameters() if config.checkpoint_name_or_path else contextlib.nullcontext():
            self.transformer = QwenModel(config, kernels)
            self.lm_head = build_linear(config, kernels, "lm_head", config.hidden_size, config.vocab_size)
        self.kernels = kernels
        if kernels.jit_config and config.use_past:
            self.set_jit_config(kernels.jit_config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.transformer.wte.embedding_weight
        self.ignore_token_id = config.ignore_token_id
        self.pad_token_id = config.pad_token_id
        self.use_past = config.use_past
        self.is_first_iteration = True
        self.graphs = {}  # phase and sizes of the inputs -> the graph that MindSpore compiled for them
        self.cache_owner = None  # whose sequences the key/value cache holds: who finds another's writes its own anew
        self.argmax = ops.argmax  # for MindFormers' own loop, whose mint.argmax only an NPU has
        self.load_checkpoint(config)

    def __call__(self, input_ids, labels=None, batch_valid_length=None, block_tables=None, slot_mapping=None,
                 prompt_lengths=None, q_seq_lens=None):
        """
        See the class. Outside training a graph takes any length: none is compiled again for a new one. But where the
        kernels don't mind how wide the block tables are, decoding has a graph for each batch size: it runs faster.
        """
        if batch_valid_length is not None and batch_valid_length.ndim != 1:  # MindFormers' own loop gives [1, B]
            batch_valid_length = Tensor(batch_valid_length.asnumpy().reshape(-1))
        inputs = (input_ids, labels, batch_valid_length, block_tables, slot_mapping, prompt_lengths, q_seq_lens)
        if self.training:
            return super().__call__(*inputs)
        if self.transformer.layer_table is not None:
            # The weights of a sequence do not change while it goes on: its cache is theirs.
            inputs += self.transformer.layer_table.place(refresh=self.is_first_iteration),
        is_static = slot_mapping is not None and not (self.is_first_iteration or self.kernels.reads_whole_tables)
        sizes = tuple(None if x is None else x.shape if is_static else (None,) * x.ndim for x in inputs)
        key = self.phase, *sizes
        # In the phases prefill and increment MindSpore takes the graph under the phase's name in phase_cache, and does
        # not look at the inputs.
        if key in self.graphs:
            self.phase_cache[self.phase] = self.graphs[key]
        else:
            self.phase_cache.pop(self.phase, None)
            self.set_inputs(*(x if x is None else Tensor(shape=size, dtype=x.dtype) for x, size in zip(inputs, sizes)))
        out = super().__call__(*inputs)
        if self.phase in ("prefill", "increment"):
            self.graphs[key] = self.phase_cache[self.phase]
        return out

    def construct(self, input_ids, labels=None, batch_valid_length=None, block_tables=None, slot_mapping=None,
                  prompt_lengths=None, q_seq_lens=None, layer_table=None):
        """See the class. With the `place` of a LayerTable all layers are one operation: for kernels that have it."""
        batch, length = ops.shape(input_ids)
        lengths = batch_valid_length
        if prompt_lengths is None:
            prompt_lengths = ops.ones_like(input_ids).sum(-1) if lengths is None else lengths
        if self.training:
            hidden = self.transformer(input_ids[:, :-1], prompt_lengths, None, None, None, None)
            return self._loss(self._logits(hidden), input_ids, labels)
        hidden = self.transformer(input_ids, prompt_lengths, lengths, block_tables, slot_mapping, q_seq_lens,
                                  layer_table)
        if lengths is None:
            return ops.reshape(self._logits(hidden), (batch, length, -1))
        if slot_mapping is None:
            rows = ops.cumsum(ops.ones_like(lengths), 0) - 1
            hidden = ops.gather(hidden, rows * length + lengths - 1, 0)
        elif self.is_first_iteration:
            hidden = ops.gather(hidden, ops.cumsum(lengths if q_seq_lens is None else q_seq_lens, 0) - 1, 0)
        return self._logits(hidden)

    def _logits(self, hidden):
        return ops.cast(self.kernels.linear(hidden, self.lm_head.weights()), ms.float32)

    def _loss(self, logits, input_ids, labels):
        """Mean cross entropy of the tokens to be learnt."""
        learnt = input_ids[:, :-1] != self.pad_token_id
        if labels is None:
            labels = input_ids
        else:
            learnt = labels[:, 1:] != self.ignore_token_id
        learnt = ops.reshape(learnt, (-1,))
        targets = ops.where(learnt, ops.reshape(labels[:, 1:], (-1,)), ops.zeros_like(learnt, dtype=ms.int32))
        losses = -ops.gather_elements(ops.log_softmax(logits, -1), 1, ops.expand_dims(targets, -1))
        learnt = ops.cast(learnt, ms.float32)
        return (ops.reshape(losses, (-1,)) * learnt).sum() / ops.maximum(learnt.sum(), Tensor(1.0, ms.float32))

    # What MindFormers' generate, Trainer and checkpoint loading call.

    def _set_block_mgr(self, batch_size, seq_length):
        """The blocks of MindFormers' own loop, as many as the cache has."""
        size = self.config.block_size
        self.block_mgr = BlockTables(self.config.cache_blocks, size, self.config.blocks_per_sequence * size)
        self.block_mgr.init_cache_engine(batch_size)
        self.cache_owner = self.block_mgr

    def set_dynamic_inputs(self, **kwargs):
        """Nothing to do: `__call__` declares the inputs of every call."""

    def add_flags_custom(self, is_first_iteration):
        """Choose which graph the next compilation makes: prefill, or decoding."""
        self.add_flags(is_first_iteration=is_first_iteration)
        self.transformer.add_flags(is_first_iteration=is_first_iteration)
        for layer in self.transformer.layers:
            layer.add_flags(is_first_iteration=is_first_iteration)

    def load_checkpoint(self, config):
        """Load `config.checkpoint_name_or_path`, if there is one: see `model.load.load_weights`."""
        if config.checkpoint_name_or_path:
            load_weights(self, config.checkpoint_name_or_path)
            self.init_parameters_data()

    def fuse_weight_from_ckpt(self, ckpt_dict):
        """What the Trainer calls with a checkpoint before it loads it: see `model.load.prepare_weights`."""
        return prepare_weights(self, ckpt_dict)

    def set_train(self, mode=True):
        """As of any Cell. Raises ValueError where quantised weights are to be trained."""
        if mode and self.config.quantization:
            raise ValueError("a quantised model can't be trained: load the unquantised checkpoint, or one that "
                             "convert_weight.py --dequantize wrote")
        return super().set_train(mode)

    def kvcache(self, layer_idx):
        """The key cache and the value cache of a layer."""
        attention = self.transformer.layers[layer_idx].attention
        return attention.key_cache, attention.value_cache

    def get_model_parameters(self, only_trainable=True):
        """The parameters of the model, as a set."""
        return set(self.trainable_params() if only_trainable else self.get_parameters())


def _zero_cache(name, shape, dtype):
    """A parameter of zeros; on a CPU its memory is only taken page by page, as it is written to."""
    return Parameter(initializer("zeros", shape, dtype), name=name, requires_grad=False)


def _packed_positions(ids, lengths, queries):
    """Position [T] in its own sequence, and sequence [T], of each token of packed sequences."""
    ends = ops.cumsum(lengths if queries is None else queries, 0)
    order = ops.cumsum(ops.ones_like(ids), 0) - 1
    rows = ops.cast(ops.expand_dims(order, -1) >= ops.expand_dims(ends, 0), ms.int32).sum(-1)
    return order - ops.gather(ends - lengths, rows, 0), rows
