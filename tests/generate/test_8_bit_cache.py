"""
The engine over a cache of 8 bits, where what one call writes for a sequence shares a scale: answers are those of each
request alone all the same, whatever else goes on and whatever the cache holds already.
"""
import numpy as np
import pytest

from helpers.engine import Answers, Workload, alone, check_blocks, run, settings
from qwen_mindspore.generate import blocks
from qwen_mindspore.generate.blocks import BlockPool, call_rows, piece_size
from qwen_mindspore.generate.engine import Engine, Request
from qwen_mindspore.kernels import runnable_kernels
from qwen_mindspore.model.config import QwenConfig

SEQ_LENGTH, BLOCK_SIZE, POOL, PIECE = 160, 4, 44, 12


@pytest.fixture(scope="module")
def build(build_tiny):
    """Pieces of three blocks, a pool that holds one sequence of full length and little more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "PIECE", PIECE + 1)
        yield lambda kernels: build_tiny(use_past=True, use_cache_quantization=True, seq_length=SEQ_LENGTH,
                                         block_size=BLOCK_SIZE, num_blocks=POOL, kernels=kernels)


@pytest.fixture(scope="module")
def model(build):
    """One whose products have the same bits in any company."""
    if "cpu" not in runnable_kernels():
        pytest.skip("the cpu kernels can't be built here")
    return build("cpu")


@pytest.fixture(scope="module")
def workload(model):
    return Workload(model, np.random.default_rng(1), count=24)


def test_pieces_are_whole_blocks():
    def size(block_size, **others):
        return piece_size(QwenConfig(block_size=block_size, **others))

    assert size(16) is None
    assert [size(block, use_cache_quantization=True) for block in (4, 16, 48, 256, 1000)] == [256, 256, 240, 256, 1000]


def test_a_call_has_more_than_four_tokens():
    assert call_rows([1]).tolist() == [0] * 5 and call_rows([3, 2]).tolist() == [0, 1]
    assert call_rows([2, 1]).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("kernels", runnable_kernels())
def test_every_call_writes_whole_pieces_of_prompts(build, monkeypatch, kernels):
    """Whatever the kernels, no scale spans what depends on other prompts or on the size of a step."""
    model, spans = build(kernels), []
    prefill = model.prefill

    def watch(ids, queries, lengths, prompt_lengths, tables):
        spans.extend(zip(lengths - queries, lengths, prompt_lengths))
        assert len(ids) >= 5 and ((queries == 1).all() or (queries > 1).all())
        return prefill(ids, queries, lengths, prompt_lengths, tables)

    monkeypatch.setattr(model, "prefill", watch)
    prompts = [list(range(length)) for length in (1, 2, PIECE, PIECE + 1, 4 * PIECE - 1, 50, 3)]
    for prefill_tokens in (1, 30, 500):
        run(Engine(model, max_batch=3, prefill_tokens=prefill_tokens),
            [Request(prompt, settings(30), id=i) for i, prompt in enumerate(prompts)])
    model.generate(prompts[:4], max_new_tokens=2, do_sample=False)
    assert len(spans) > 30
    for start, end, prompt_length in spans:
        assert start % PIECE == 0 and end == min(start + PIECE, prompt_length)



@pytest.mark.parametrize("max_batch", [1, 2, 8])
@pytest.mark.parametrize("prefill_tokens", [1, 40])
def test_an_answer_does_not_depend_on_its_company(model, workload, max_batch, prefill_tokens):
    engine = Engine(model, max_batch=max_batch, prefill_tokens=prefill_tokens)
    assert run(engine, workload.requests.values()).tokens == workload.expected
    again = run(engine, reversed(workload.requests.values()))
    assert again.tokens == workload.expected and engine.stats().reused_tokens


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_no_answer_changes_and_no_block_is_lost(model, workload, seed):
    """Random arrivals and cancels, a pool that is too small for all, and something else that uses the cache."""
    random = np.random.default_rng(seed)
    engine = Engine(model, max_batch=int(random.integers(3, 9)), prefill_tokens=int(random.integers(5, 100)))
    engine.pool = BlockPool(int(random.integers(36, POOL + 1)))
    answers, to_come = Answers(), list(random.permutation(len(workload.requests)))
    rush, steps = random.uniform(0.3, 1), 0
    while to_come or engine.has_work:
        while to_come and random.random() < rush:
            engine.add(workload.requests[int(to_come.pop())])
        if engine.has_work and random.random() < 0.02:
            engine.cancel(int(random.choice(list(engine.sequences))))
        if random.random() < 0.005:
            model.generate([1, 2, 3], max_new_tokens=2, do_sample=False)
        answers.take(engine.step())
        check_blocks(engine)
        steps += 1
        assert steps < 20000, "a deadlock"
    assert engine.stats().free_blocks == engine.pool.count
    assert engine.stats().evictions and engine.stats().reused_tokens, "else this test shows little"
    for id, reason in answers.reasons.items():
        answer, expected = answers.tokens[id], workload.expected[id]
        assert answer == expected if reason == "length" else answer == expected[:len(answer)], id


def test_an_evicted_request_decodes_its_answer_again(model):
    engine, answers = Engine(model, max_batch=2), Answers()
    prompt = list(range(2 * PIECE + 3))
    engine.add(Request([9] * 20, settings(120), id="older"))
    answers.take(engine.step())
    engine.add(Request(prompt, settings(40, do_sample=True, seed=3), id="younger"))
    while len(answers.tokens.get("younger", [])) < 20:
        answers.take(engine.step())
    engine.pool.empty, hidden = [], engine.pool.empty  # no room any more
    while not engine.stats().evictions:
        answers.take(engine.step())
    engine.pool.empty += hidden
    before = engine.stats().computed_tokens
    while engine.has_work:
        answers.take(engine.step())
        check_blocks(engine)
    assert engine.stats().computed_tokens - before <= len(prompt), "the prompt alone is computed at once"
    assert answers.tokens["younger"] == alone(model, prompt, settings(40, do_sample=True, seed=3))
    assert answers.tokens["older"] == alone(model, [9] * 20, settings(120))


@pytest.mark.parametrize("length, reused", [(PIECE, 0), (PIECE + 1, PIECE), (2 * PIECE, PIECE),
                                            (3 * PIECE - 1, 2 * PIECE)])
def test_whole_pieces_are_shared_and_nothing_else(model, length, reused):
    engine, prompt = Engine(model), list(range(100, 100 + length))
    first = run(engine, [Request(prompt, settings(30), id=0)]).tokens[0]
    assert engine.stats().reused_tokens == 0
    again = run(engine, [Request(prompt, settings(30), id=0)]).tokens[0]
    assert engine.stats().reused_tokens == reused
    assert first == again == alone(model, prompt, settings(30))


def test_what_decoding_wrote_is_computed_again_as_part_of_a_prompt(model):
    engine, prompt = Engine(model), list(range(PIECE + 2))
    answer = run(engine, [Request(prompt, settings(3 * PIECE), id=0)]).tokens[0]
    follow_up = prompt + answer + [5]
    assert run(engine, [Request(follow_up, settings(), id=0)]).tokens[0] == alone(model, follow_up, settings())
    assert engine.stats().reused_tokens == PIECE


def test_a_piece_is_known_by_all_of_its_tokens(model):
    """The first block of a piece has scales that its last tokens decide."""
    engine = Engine(model)
    prompts = [[*range(PIECE - 1), last, 7] for last in (300, 400)]
    answers = [run(engine, [Request(prompt, settings(), id=0)]).tokens[0] for prompt in prompts]
    assert engine.stats().reused_tokens == 0
    assert answers == [alone(model, prompt, settings()) for prompt in prompts]


def test_a_piece_that_lost_a_block_is_not_shared(model):
    engine, prompt = Engine(model), list(range(2 * PIECE + 1))
    run(engine, [Request(prompt, settings(1), id=0)])
    lost = engine.pool.published[next(digest for digest in engine.pool.published if digest[1])]
    engine.pool.withdraw(lost)
    run(engine, [Request(prompt, settings(1), id=0)])
    assert engine.stats().reused_tokens == 0
    check_blocks(engine)
