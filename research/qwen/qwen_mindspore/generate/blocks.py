"""The blocks of a paged key/value cache: who holds which of them, and what is shared."""
from collections import OrderedDict

import numpy as np

__all__ = ["BlockPool", "call_rows", "piece_size"]

PIECE = 256  # tokens of a prompt that share their scales in an 8-bit cache
LEAST_TOKENS = 5  # of a call, see `call_rows`


def piece_size(config):
    """
    How many tokens of a prompt must be written to the cache by one call.

    In a cache of 8 bits, a scale spans what one call writes for a sequence. So that an answer depends on its prompt
    alone, and neither on the prompts beside it nor on what is in the cache already, a prompt is computed in pieces that
    end at multiples of this size, each by one call.

    Args:
        config (QwenConfig): The model's.

    Returns:
        int, a multiple of `block_size`; None where no tokens share anything.
    """
    if not config.use_cache_quantization:
        return None
    return max(PIECE // config.block_size, 1) * config.block_size


def call_rows(queries):
    """
    The rows of a call that writes to a cache of 8 bits, so that each computes the same bits whatever is beside it.

    Levels of such a cache are cut off, not rounded: the last bit of a key may decide about one. The `cpu` kernels sum
    in another order where a call has up to four tokens, so rows are repeated till it has more; to write the same to the
    same slots twice does no harm. They also attend in another way where each sequence has one token: who plans a call
    keeps such rows apart from longer ones. With other kernels, whose matrix products are not ours, the last bit may
    still depend on the size of a call.

    Args:
        queries (Sequence[int]): Tokens of each row.

    Returns:
        np.ndarray, indices of rows: each in order, then perhaps again.
    """
    return np.tile(np.arange(len(queries)), -(-LEAST_TOKENS // int(np.sum(queries))))


class BlockPool:
    """
    The blocks of a paged cache: who has how many of them, and what the full ones hold.

    A block is held by one sequence or, once its content is published, by several; a published block that nobody holds
    is kept until its room is needed, the least recently held one least long.

    Args:
        count (int): Number of blocks; they are called 0 to count - 1.
    """

    def __init__(self, count):
        self.count = count
        self.holders = [0] * count
        self.empty = list(range(count - 1, -1, -1))
        self.kept = OrderedDict()  # published blocks that nobody holds, least recently held first
        self.published = {}  # digest -> block
        self.digests = {}  # block -> digest

    @property
    def free(self):
        """How many blocks nobody holds."""
        return len(self.empty) + len(self.kept)

    def take(self):
        """A block to write to; there must be a free one."""
        if not self.empty:
            self.withdraw(next(iter(self.kept)))
        block = self.empty.pop()
        self.holders[block] = 1
        return block

    def publish(self, block, digest):
        """Let others hold a block of this content, too, unless there is another such block."""
        if digest not in self.published:
            self.published[digest], self.digests[block] = block, digest

    def withdraw(self, block):
        """Forget what a block holds."""
        digest = self.digests.pop(block, None)
        if digest is not None:
            del self.published[digest]
            if block in self.kept:
                del self.kept[block]
                self.empty.append(block)

    def withdraw_all(self):
        """Forget what all blocks hold."""
        for block in list(self.digests):
            self.withdraw(block)

    def share(self, blocks):
        """Hold published blocks."""
        for block in blocks:
            self.kept.pop(block, None)
            self.holders[block] += 1

    def release(self, blocks):
        """Hold the blocks of a sequence no longer."""
        # Blocks further behind are of no use without those before them: they go first.
        for block in reversed(blocks):
            self.holders[block] -= 1
            if self.holders[block] == 0:
                if block in self.digests:
                    self.kept[block] = None
                else:
                    self.empty.append(block)
