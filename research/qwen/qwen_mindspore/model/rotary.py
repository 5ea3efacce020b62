"""Tables of rotary embedding, with what Qwen adds for prompts beyond its training length: dynamic NTK and LogN."""
import math

import mindspore as ms
import numpy as np
from mindspore import Tensor

__all__ = ["RotaryTables", "ntk_alphas"]


def ntk_alphas(train_length, max_length):
    """
    The values that the NTK factor takes for prompts of up to `max_length` tokens: 1, 3, 7, ..., 2**k - 1.

    The reference takes alpha = 2**ceil(log2(length / train_length) + 1) - 1, and 1 up to the training length; so the
    k-th factor (from 0) holds for lengths above train_length * 2**(k - 1).

    Source: https://huggingface.co/Qwen/Qwen-7B/blob/main/modeling_qwen.py (get_ntk_alpha)
    """
    doublings = max(0, math.ceil(math.log2(max_length / train_length)))
    return [2 ** (k + 1) - 1 for k in range(doublings + 1)]


class RotaryTables:
    """
    What a position is rotated by, for each NTK factor and position, computed once on the host.

    Attributes:
        cos, sin (Tensor): [factors * seq_length, head_size / 2] float32; the row of factor k and position p is
            k * seq_length + p. Angles are p / base**(2i / head_size) with base = theta * alpha**(d / (d - 2)).
        logn (Tensor): [seq_length] float32, max(1, log(p + 1) / log(train_seq_length)), which scales queries; None
            where LogN is off or no position is beyond the training length.
        thresholds (Tensor): [factors - 1] int32, the prompt lengths above which the next factor holds; None where
            only one is possible.
        length (int): `seq_length`, the rows of one factor.

    Source: Su et al., RoFormer (arXiv:2104.09864); modeling_qwen.py (RotaryEmbedding, logn_list)
    """

    def __init__(self, config):
        self.length = config.seq_length
        alphas = ntk_alphas(config.train_seq_length, self.length) if config.use_dynamic_ntk else [1]
        size = config.kv_channels
        exponents = np.arange(0, size, 2, dtype=np.float64) / size
        positions = np.arange(self.length, dtype=np.float32)
        bases = [config.theta * (alpha ** (size / (size - 2)) if alpha > 1 else 1) for alpha in alphas]
        # The reference rounds the frequencies and the angles to float32; so must this, to agree at far positions.
        frequencies = [(1.0 / base ** exponents).astype(np.float32) for base in bases]
        angles = np.concatenate([np.outer(positions, frequency) for frequency in frequencies]).astype(np.float64)
        self.cos = Tensor(np.cos(angles).astype(np.float32))
        self.sin = Tensor(np.sin(angles).astype(np.float32))
        self.thresholds = None
        if len(alphas) > 1:
            self.thresholds = Tensor([config.train_seq_length * 2 ** k for k in range(len(alphas) - 1)], ms.int32)
        self.logn = None
        if config.use_logn_attn and self.length > config.train_seq_length:
            scale = np.log(np.arange(1, self.length + 1)) / math.log(config.train_seq_length)
            self.logn = Tensor(np.maximum(scale, 1.0).astype(np.float32))
