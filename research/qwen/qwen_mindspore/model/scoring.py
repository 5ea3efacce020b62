"""Hidden states and logits of every position of a text, where `CausalLM` gives those of the last one."""
import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from qwen_mindspore.model.causal_lm import one_at_a_time

__all__ = ["Head", "HiddenStates", "Scorer", "chunks"]

LOGIT_BYTES = 2**27  # of the logits that are held at once: those of a long text by 151,936 tokens are gigabytes


class HiddenStates(nn.Cell):
    """
    All of a model but its head, in a graph of its own.

    Args:
        model (QwenForCausalLM): With `use_past` everything is computed through its cache.

    Inputs:
        As those of `CausalLM`: input_ids, batch_valid_length, prompt_lengths, block_tables, slot_mapping, q_seq_lens.

    Outputs:
        Tensor [T, hidden], of every token of the call.
    """

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.transformer, self.layer_table = model.transformer, model.transformer.layer_table
        paged = model.config.use_past
        if paged and model.kernels.jit_config:
            self.set_jit_config(model.kernels.jit_config)
        numbers, table = _shape(ms.int32, None), None if self.layer_table is None else _shape(ms.int64, 2)
        cache = (_shape(ms.int32, None, None), numbers, numbers) if paged else (None, None, None)
        self.set_inputs(_shape(ms.int32, None, None), numbers, numbers, *cache, table)
        self.set_train(False)

    @one_at_a_time
    def __call__(self, *inputs):
        """See the class."""
        table = None if self.layer_table is None else self.layer_table.address(refresh=True)
        return super().__call__(*inputs, table)

    def construct(self, ids, lengths, prompt_lengths, block_tables, slot_mapping, queries, layer_table):
        """See the class."""
        return self.transformer(ids, prompt_lengths, lengths, block_tables, slot_mapping, queries, layer_table)


class Head(nn.Cell):
    """Hidden states [T, hidden] to float32 logits [T, vocab_size]."""

    def __init__(self, model):
        super().__init__(auto_prefix=False)
        self.lm_head = model.lm_head
        self.set_inputs(_shape(model.kernels.dtype, None, model.config.hidden_size))
        self.set_train(False)

    @one_at_a_time
    def __call__(self, hidden):
        """See the class."""
        return super().__call__(hidden)

    def construct(self, hidden):
        """See the class."""
        return ops.cast(self.lm_head(hidden), ms.float32)


class Scorer:
    """
    The logits of every token of a prompt, for those who want to know how likely it was.

    Args:
        model (QwenForCausalLM): With `use_past`.

    Attributes:
        parts (list): What the graphs were made of, see `CausalLM.collect`.
    """

    def __init__(self, model):
        self.model, self.parts = model, model.parts
        self.hidden, self.head = HiddenStates(model), Head(model)

    def prefill(self, ids, queries, lengths, prompt_lengths, block_tables):
        """Hidden states [T, hidden] of what `CausalLM.prefill` takes, and adds to the cache as well."""
        return self.hidden(*self.model.prefill_inputs(ids, queries, lengths, prompt_lengths, block_tables)).asnumpy()

    def logits(self, hidden):
        """np.ndarray, float32 logits [T, vocab_size] of hidden states [T, hidden]."""
        return self.head(Tensor.from_numpy(np.ascontiguousarray(hidden))).asnumpy()

    def chunks(self, hidden):
        """Pairs of slices of the tokens of hidden states [T, hidden] and their logits, so many as may be held."""
        for rows in chunks(len(hidden), self.model.config.vocab_size):
            yield rows, self.logits(hidden[rows])


def chunks(count, vocabulary):
    """list[slice] of so many tokens, by how many may have their float32 logits in memory."""
    size = max(1, LOGIT_BYTES // (4 * vocabulary))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _shape(dtype, *shape):
    return Tensor(shape=shape, dtype=dtype)
