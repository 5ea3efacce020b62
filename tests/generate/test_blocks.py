"""The pool of blocks: none is lost, none is held by whom nobody knows."""
from qwen_mindspore.generate.blocks import BlockPool


def test_a_pool_hands_blocks_out_and_takes_them_back():
    pool = BlockPool(3)
    blocks = [pool.take() for _ in range(3)]
    assert sorted(blocks) == [0, 1, 2] and pool.free == 0
    pool.publish(blocks[0], "a")
    pool.publish(blocks[1], "a")
    assert pool.published == {"a": blocks[0]}, "one block of a content is enough"
    pool.share([blocks[0]])
    pool.release(blocks)
    assert pool.free == 2 and not pool.kept
    pool.release(blocks[:1])
    assert pool.free == 3 and list(pool.kept) == blocks[:1]
    assert [pool.take() for _ in range(2)] == [blocks[1], blocks[2]] and "a" in pool.published
    assert pool.take() == blocks[0] and not pool.published, "a kept block is taken last, and forgotten"
