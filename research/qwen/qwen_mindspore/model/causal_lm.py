"""
Qwen with its language-model head, as a MindFormers model: the loss in training, logits otherwise, and steps of each.
"""
import contextlib
import copy
import functools
import threading

import mindspore as ms
import numpy as np
from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.modules.block_tables import BlockTables
from mindformers.tools.logger import logger
from mindspore import Tensor, ops
from mindspore.nn.utils import no_init_parameters

from qwen_mindspore.checkpoint.packing import agreed_quantization
from qwen_mindspore.common.mindspore_internals import compiled_graph, forget_graphs, select_compiled_graph
from qwen_mindspore.kernels import build_kernels
from qwen_mindspore.model.config import QwenConfig
from qwen_mindspore.model.graph import QwenModel
from qwen_mindspore.model.linear import Linear, QuantLinear, build_linear
from qwen_mindspore.model.load import load_weights, prepare_weights

__all__ = ["CausalLM", "one_at_a_time"]

_CALLS = threading.RLock()  # MindSpore hangs for ever where two threads run graphs, also of two models


def one_at_a_time(method):
    """One call at a time in the whole process."""
    @functools.wraps(method)
    def call(*args, **kwargs):
        with _CALLS:
            return method(*args, **kwargs)
    return call


class CausalLM(PreTrainedModel):
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
        self.parts = None  # what the graphs were made of, see `collect`
        self.load_checkpoint(config)
        self.collect()

    @one_at_a_time
    def __call__(self, input_ids, labels=None, batch_valid_length=None, block_tables=None, slot_mapping=None,
                 prompt_lengths=None, q_seq_lens=None):
        """
        See the class. Outside training a graph takes any length: none is compiled again for a new one. But where the
        kernels don't mind how wide the block tables are, decoding has a graph for each batch size: it runs faster.
        Calls of several threads, of whatever models of the process, wait for each other: MindSpore would hang.
        """
        if batch_valid_length is not None and batch_valid_length.ndim != 1:  # MindFormers' own loop gives [1, B]
            batch_valid_length = Tensor(batch_valid_length.asnumpy().reshape(-1))
        inputs = (input_ids, labels, batch_valid_length, block_tables, slot_mapping, prompt_lengths, q_seq_lens)
        if self.is_first_iteration and self.parts != self._parts():
            self.collect()
        if self.training:
            return super().__call__(*inputs)
        if self.transformer.layer_table is not None:
            # The weights of a sequence do not change while it goes on: its cache is theirs.
            inputs += self.transformer.layer_table.address(refresh=self.is_first_iteration),
        is_static = slot_mapping is not None and not (self.is_first_iteration or self.kernels.reads_whole_tables)
        sizes = tuple(None if x is None else x.shape if is_static else (None,) * x.ndim for x in inputs)
        key = self.phase, *sizes
        select_compiled_graph(self, self.graphs.get(key))
        if key not in self.graphs:
            self.set_inputs(*(x if x is None else Tensor(shape=size, dtype=x.dtype) for x, size in zip(inputs, sizes)))
        out = super().__call__(*inputs)
        graph = compiled_graph(self)
        if graph is not None:
            self.graphs[key] = graph
        return out

    def construct(self, input_ids, labels=None, batch_valid_length=None, block_tables=None, slot_mapping=None,
                  prompt_lengths=None, q_seq_lens=None, layer_table=None):
        """See the class. With the `address` of a LayerTable all layers are one operation: for kernels that have it."""
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
        return ops.cast(self.lm_head(hidden), ms.float32)

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

    def collect(self):
        """
        Take what the kernels need of the cells below, as they are now, and forget the graphs that were made of others.

        A linear of a built model may be replaced by any cell x [T, inputs] -> [T, outputs], or get an `adapter`: the
        next prompt sees it, before the first answer or later. Who gives a linear another parameter object, as tied
        heads have, or an adapter to a linear inside a wrapper, must call this.
        """
        for name, parameter in self.parameters_and_names():
            parameter.name = name  # two wrappers alike would leave two parameters of one name, which no graph can have
        for _, cell in self.cells_and_names():
            if isinstance(cell, (Linear, QuantLinear)):
                cell.collect()
        self.transformer.collect()
        if self.parts is not None:
            forget_graphs(self)
            self.graphs.clear()
        self.parts = self._parts()

    def _parts(self):
        """The cells that may be replaced, as they are now."""
        adapter = getattr(self.lm_head, "adapter", None)
        return [self.lm_head, adapter, self.transformer.wte, *self.transformer.linears()]

    # A step from arrays to arrays, which the loop and the engine go by.

    def prefill(self, ids, queries, lengths, prompt_lengths, block_tables):
        """
        Add tokens to the cache, and compute what follows them.

        Args:
            ids (np.ndarray): [T], the tokens of each sequence, packed one behind the other.
            queries (np.ndarray): [B], how many of them are each sequence's.
            lengths (np.ndarray): [B], tokens that each sequence has then; what stands before its queries is cached.
            prompt_lengths (np.ndarray): [B], what dynamic NTK goes by.
            block_tables (np.ndarray): [B, blocks of seq_length], see `kernels`.

        Returns:
            np.ndarray, logits [B, vocab_size] of each sequence's last token.
        """
        is_whole = self.kernels.faster_whole_prefill and np.array_equal(queries, lengths)
        ids, lengths, prompt_lengths, tables, slots, q_seq_lens = self.prefill_inputs(
            ids, queries, lengths, prompt_lengths, block_tables)
        return self(ids, batch_valid_length=lengths, block_tables=tables, slot_mapping=slots,
                    prompt_lengths=prompt_lengths, q_seq_lens=None if is_whole else q_seq_lens).asnumpy()

    def prefill_inputs(self, ids, queries, lengths, prompt_lengths, block_tables):
        """
        What a graph takes of the arguments of `prefill`; chooses the graphs of prefill.

        Returns:
            tuple of int32 Tensors: input_ids [1, T], batch_valid_length, prompt_lengths, block_tables, slot_mapping and
            q_seq_lens.
        """
        self._enter("prefill", is_first_iteration=True)
        rows = np.repeat(np.arange(len(queries)), queries)
        positions = np.arange(len(ids)) + np.repeat(lengths - np.cumsum(queries), queries)
        slots = self._slots(block_tables, rows, positions)
        tables = self._narrowed(block_tables, lengths)
        return tuple(map(_int32, (ids[None], lengths, prompt_lengths, tables, slots, queries)))

    def decode(self, ids, lengths, block_tables):
        """
        Add one token to each sequence in the cache, and compute what follows it.

        Args:
            ids (np.ndarray): [B], the tokens.
            lengths (np.ndarray): [B], tokens that each sequence has then.
            block_tables (np.ndarray): [B, blocks of seq_length].

        Returns:
            np.ndarray, logits [B, vocab_size].
        """
        self._enter("increment", is_first_iteration=False)
        slots = self._slots(block_tables, np.arange(len(ids)), lengths - 1)
        tables = self._narrowed(block_tables, lengths) if self.kernels.reads_whole_tables else block_tables
        return self(_int32(ids[:, None]), batch_valid_length=_int32(lengths), block_tables=_int32(tables),
                    slot_mapping=_int32(slots)).asnumpy()

    def whole(self, ids, lengths, prompt_lengths):
        """
        Compute whole sequences, without a cache.

        Args:
            ids (np.ndarray): [B, S]; what stands behind a sequence is not looked at.
            lengths (np.ndarray): [B], tokens of each sequence.
            prompt_lengths (np.ndarray): [B], what dynamic NTK goes by.

        Returns:
            np.ndarray, logits [B, vocab_size] of each sequence's last token.
        """
        # The id of padding may be outside the vocabulary.
        ids = np.where(np.arange(ids.shape[1]) < lengths[:, None], ids, 0)
        return self(_int32(ids), batch_valid_length=_int32(lengths), prompt_lengths=_int32(prompt_lengths)).asnumpy()

    def _slots(self, block_tables, rows, positions):
        """The cache slots of positions of sequences."""
        size = self.config.block_size
        return block_tables[rows, positions // size] * size + positions % size

    def _narrowed(self, block_tables, lengths):
        """The tables, as wide as the longest sequence needs."""
        return block_tables[:, :-(-int(lengths.max()) // self.config.block_size)]

    def _enter(self, phase, is_first_iteration):
        """Choose the graph of the next call."""
        self.phase = phase
        if self.is_first_iteration != is_first_iteration:
            self.add_flags_custom(is_first_iteration)

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
        """As of any Cell. Raises ValueError where quantized weights are to be trained."""
        if mode and self.config.quantization:
            raise ValueError("a quantized model can't be trained: load the unquantized checkpoint, or one that "
                             "convert_weight.py --dequantize wrote")
        return super().set_train(mode)

    def kvcache(self, layer_idx):
        """The key cache and the value cache of a layer."""
        attention = self.transformer.layers[layer_idx].attention
        return attention.key_cache, attention.value_cache

    def get_model_parameters(self, only_trainable=True):
        """The parameters of the model, as a set."""
        return set(self.trainable_params() if only_trainable else self.get_parameters())


def _int32(array):
    return Tensor.from_numpy(np.ascontiguousarray(array, np.int32))
