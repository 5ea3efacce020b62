"""
The engine: answers are those of each request alone, whatever else goes on; blocks are neither lost nor held twice;
what requests share is computed once.
"""
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from helpers import TINY
from helpers.engine import Answers, Workload, alone, check_blocks, run, settings
from qwen_mindspore.generate.blocks import BlockPool
from qwen_mindspore.generate.engine import Engine, Output, Request
from qwen_mindspore.kernels import runnable_kernels

SEQ_LENGTH, BLOCK_SIZE, POOL = 160, 4, 44
GREEDY = json.loads((TINY / "greedy.json").read_text())
LONG = np.load(TINY / "long_context.npz")
LONG_GREEDY = json.loads((TINY / "long_context_greedy.json").read_text())


@pytest.fixture(scope="module")
def model(build_tiny):
    """A pool of blocks that holds one sequence of full length and little more; NTK begins at 64 tokens."""
    return build_tiny(use_past=True, seq_length=SEQ_LENGTH, block_size=BLOCK_SIZE, num_blocks=POOL)


# One request

@pytest.mark.parametrize("case", range(3))
def test_a_request_alone_is_answered_as_the_reference_does(model, case):
    answers = run(Engine(model), [Request(GREEDY["prompts"][case], settings(32), id="only")])
    assert answers.tokens == {"only": GREEDY["greedy"][case]} and answers.reasons == {"only": "length"}


def test_ids_are_given_to_requests_that_have_none(model):
    engine = Engine(model)
    first = Request([1], settings(1))
    ids = [engine.add(request) for request in (Request([1], settings(1), id=0), first, first)]
    assert ids[0] == 0 and len(set(ids)) == 3 and first.id is None
    with pytest.raises(ValueError, match="id 0: a request of that id has not ended yet"):
        engine.add(Request([1], id=0))
    run(engine)
    assert engine.add(Request([1], settings(1), id=0)) == 0, "an id is free again when its request has ended"
    run(engine)


@pytest.mark.parametrize("prompt, said", [
    ([], "the prompt is empty"), ([1, 512], "the prompt: id 512 is outside the vocabulary of 512"),
    ([-1], "id -1 is outside"), ([1] * SEQ_LENGTH, f"{SEQ_LENGTH} tokens and the model holds {SEQ_LENGTH}"),
    ([1.5], "the prompt: expected a list of ids, found .1.5."), ([[1, 2], [3, 4]], "expected a list of ids"),
])
def test_a_request_that_can_never_run_is_refused(model, prompt, said):
    engine = Engine(model)
    with pytest.raises(ValueError, match=said):
        engine.add(Request(prompt))
    assert not engine.has_work and engine.step() == []


def test_an_engine_needs_a_cache_and_a_place(model, build_tiny):
    with pytest.raises(ValueError, match="use_past"):
        Engine(build_tiny(use_past=False))
    for name in ("max_batch", "prefill_tokens"):
        with pytest.raises(ValueError, match=f"{name}: expected a positive integer, found 0"):
            Engine(model, **{name: 0})


def test_an_answer_ends_where_the_room_ends(model):
    prompt = [7] * (SEQ_LENGTH - 3)
    answers = run(Engine(model), [Request(prompt, settings(50), id=0)])
    assert len(answers.tokens[0]) == 3 and answers.reasons[0] == "length"


def test_a_stop_word_ends_the_answer_and_is_named(model):
    prompt, answer = GREEDY["prompts"][1], GREEDY["greedy"][1]
    words = (tuple(answer[4:6]), (answer[5],), tuple(answer[3:6]), (9999,))
    engine = Engine(model)
    engine.add(Request(prompt, settings(32, stop_words_ids=words), id=0))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [output.token for output in outputs] == answer[:6]
    assert outputs[-1] == Output(0, answer[5], "stop", stop_length=3), "the longest of those that match"


def test_a_stop_word_is_no_part_of_the_prompt(model):
    prompt, answer = GREEDY["prompts"][1], GREEDY["greedy"][1]
    words = ((prompt[-1], answer[0]),)
    answers = run(Engine(model), [Request(prompt, settings(4, stop_words_ids=words), id=0)])
    assert answers.tokens[0] == answer[:4] and answers.reasons[0] == "length"


SAMPLED = [dict(do_sample=True, seed=3), dict(do_sample=True, seed=4, temperature=1.5, top_k=20, top_p=0.9),
           dict(repetition_penalty=1.4), dict(do_sample=True, seed=5, repetition_penalty=1.2, top_p=0.8)]


def test_settings_are_each_requests_own(model):
    prompt = GREEDY["prompts"][2]
    each = [settings(20, **others) for others in SAMPLED]
    expected = [alone(model, prompt, one) for one in each]
    answers = run(Engine(model, max_batch=4), [Request(prompt, one, id=i) for i, one in enumerate(each)])
    assert [answers.tokens[i] for i in range(len(each))] == expected
    assert len({tuple(answer) for answer in expected}) == len(each)


def test_without_a_seed_answers_differ_and_numpys_global_state_is_left_alone(model):
    np.random.seed(1)
    requests = [Request([5, 6], settings(12, do_sample=True, temperature=2.0), id=i) for i in range(2)]
    answers = run(Engine(model, max_batch=2), requests)
    assert answers.tokens[0] != answers.tokens[1]
    after = np.random.random_sample()
    np.random.seed(1)
    assert np.random.random_sample() == after


# Many requests

@pytest.fixture(params=runnable_kernels(), scope="module")
def either_model(request, build_tiny):
    return build_tiny(use_past=True, seq_length=SEQ_LENGTH, block_size=BLOCK_SIZE, num_blocks=POOL,
                      kernels=request.param)


def test_golden_answers_while_others_come_and_go(either_model):
    engine, answers = Engine(either_model, max_batch=4, prefill_tokens=9), Answers()
    for i in range(9):
        engine.add(Request(GREEDY["prompts"][i % 3], settings(32), id=i))
        engine.add(Request([i, 8, 9], settings(50), id=f"disturbs {i}"))
        for _ in range(5):
            answers.take(engine.step())
        engine.cancel(f"disturbs {i}")
    while engine.has_work:
        answers.take(engine.step())
    assert [answers.tokens[i] for i in range(9)] == [GREEDY["greedy"][i % 3] for i in range(9)]


@pytest.fixture(scope="module")
def workload(either_model):
    return Workload(either_model, np.random.default_rng(0), count=30)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_no_answer_changes_and_no_block_is_lost(either_model, workload, seed):
    """Random arrivals and cancels, places and pieces of prompts of random size, a pool that is too small for all."""
    random = np.random.default_rng(seed)
    engine = Engine(either_model, max_batch=int(random.integers(3, 9)), prefill_tokens=int(random.integers(5, 100)))
    engine.pool = BlockPool(int(random.integers(36, POOL + 1)))
    answers, cancelled, to_come = Answers(), set(), list(random.permutation(len(workload.requests)))
    rush, steps = random.random(), 0
    while to_come or engine.has_work:
        while to_come and random.random() < rush:
            engine.add(workload.requests[int(to_come.pop())])
        if engine.has_work and random.random() < 0.02:
            cancelled.add(int(random.choice(list(engine.sequences))))
            for id in (*cancelled, "nobody"):
                engine.cancel(id)
        answers.take(engine.step())
        check_blocks(engine)
        steps += 1
        assert steps < 20000, "a deadlock"
    assert engine.stats().free_blocks == engine.pool.count
    assert engine.stats().evictions and engine.stats().reused_tokens, "else this test shows little"
    assert set(answers.reasons) == set(workload.requests)
    for id, reason in answers.reasons.items():
        answer, expected = answers.tokens[id], workload.expected[id]
        assert answer == expected if reason == "length" else answer == expected[:len(answer)], id
        assert reason == "length" or (reason == "cancelled" and id in cancelled)


def test_requests_wait_for_room_first_come_first_served(model):
    """Two of three fit at once: the third waits, and is not overtaken by a fourth that would fit."""
    engine = Engine(model, max_batch=4)
    for i, length in enumerate((70, 70, 70, 1)):
        engine.add(Request(list(range(i, i + length)), settings(3), id=i))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.free_blocks) == (2, 2, POOL - 2 * 18)
    answers = run(engine)
    assert list(answers.tokens) == [0, 1, 2, 3] and set(answers.reasons.values()) == {"length"}


def test_prompts_are_computed_in_pieces_between_the_decode_steps_of_others(model):
    engine, answers = Engine(model, max_batch=2, prefill_tokens=10), Answers()
    engine.add(Request([1, 2, 3], settings(30), id="first"))
    answers.take(engine.step())
    engine.add(Request(list(range(35)), settings(1), id="long"))
    steps = []
    while "long" not in answers.reasons:
        before = engine.stats().computed_tokens
        outputs = engine.step()
        answers.take(outputs)
        steps.append((engine.stats().computed_tokens - before, [output.id for output in outputs]))
    assert steps == [(0, ["first"]), (10, []), (0, ["first"]), (10, []), (0, ["first"]), (10, []), (0, ["first"]),
                     (5, ["long"])]
    engine.cancel("first")
    assert engine.step() == [Output("first", None, "cancelled")]


def test_short_prompts_are_computed_together(model):
    engine = Engine(model, max_batch=8, prefill_tokens=20)
    for i in range(8):
        engine.add(Request([i] * 6, settings(2)))
    assert len(engine.step()) == 3, "three whole prompts, and a piece of the fourth"
    run(engine)


def test_an_evicted_request_goes_on_where_it_was_with_the_ntk_factor_of_its_prompt(model):
    """The prompt is shorter than the 64 tokens at which NTK begins, the sequence that is computed again is longer."""
    prompt, expected = LONG["crossing_ids"].tolist(), LONG_GREEDY["crossing"]
    count = 64 - len(prompt) + 2
    assert len(prompt) < 64 < len(prompt) + count < len(prompt) + len(expected)
    engine, answers = Engine(model, max_batch=2), Answers()
    engine.add(Request([9] * 40, settings(90), id="older"))
    answers.take(engine.step())
    engine.add(Request(prompt, settings(len(expected)), id="younger"))
    while len(answers.tokens.get("younger", [])) < count:
        answers.take(engine.step())
    engine.pool.empty, hidden = [], engine.pool.empty  # no room any more
    while not engine.stats().evictions:
        answers.take(engine.step())
    engine.pool.empty += hidden
    while engine.has_work:
        answers.take(engine.step())
        check_blocks(engine)
    assert answers.tokens["younger"] == expected
    assert answers.tokens["older"] == alone(model, [9] * 40, settings(90))


def test_something_else_may_use_the_model_between_two_steps(model):
    """`generate`, and another engine: both fill the same cache."""
    prompts, expected = GREEDY["prompts"], GREEDY["greedy"]
    first, second, answers = Engine(model), Engine(model), Answers()
    first.add(Request(prompts[0], settings(32), id=0))
    second.add(Request(prompts[1], settings(32), id=1))
    for step in range(12):
        answers.take(first.step())
        if step % 3 == 0:
            answers.take(second.step())
        if step % 4 == 0:
            assert alone(model, prompts[2], settings(2)) == expected[2][:2]
    for engine in (first, second):
        while engine.has_work:
            answers.take(engine.step())
            check_blocks(engine)
    assert [answers.tokens[0], answers.tokens[1]] == expected[:2]


def test_decoding_has_a_graph_for_few_sizes_which_generate_uses_too(build_tiny):
    model = build_tiny(use_past=True, batch_size=6, seq_length=64)
    if model.kernels.reads_whole_tables:
        pytest.skip("these kernels have one graph for all sizes")
    engine = Engine(model)
    for i in range(6):
        engine.add(Request([i], settings(2 + 3 * i)))
    while engine.has_work:
        engine.step()
    sizes = [key[1][0] for key in model.graphs if key[0] == "increment"]
    assert sizes == [6, 4, 2, 1]
    graphs = len(model.compile_cache)
    model.generate([[1], [2]], max_new_tokens=3, do_sample=False, eos_token_id=[])
    assert len(model.compile_cache) == graphs


# What requests share

def test_a_common_beginning_is_computed_once(model):
    beginning, ends = list(range(100, 141)), ([1, 2], [3], [4, 5, 6])
    prompts = [beginning + end for end in ends]
    expected = [alone(model, prompt, settings()) for prompt in prompts]
    engine = Engine(model, max_batch=3)
    together = run(engine, [Request(prompt, settings(), id=i) for i, prompt in enumerate(prompts)])
    stats = engine.stats()
    assert (stats.reused_tokens, stats.computed_tokens) == (80, 43 + 2 + 4), "the ten full blocks of 41 tokens, twice"
    later = run(engine, [Request(prompts[1], settings(), id=1)])
    assert engine.stats().reused_tokens == 80 + 40
    assert [together.tokens[i] for i in range(3)] == expected and later.tokens[1] == expected[1]


def test_an_answer_is_the_beginning_of_the_next_prompt_of_a_conversation(model):
    engine, prompt = Engine(model), list(range(7))
    answer = run(engine, [Request(prompt, settings(12), id=0)]).tokens[0]
    prompt = prompt + answer + [5, 6]
    again = run(engine, [Request(prompt, settings(5), id=0)]).tokens[0]
    assert engine.stats().reused_tokens == 16, "of 19 tokens, the last of which was not computed"
    assert again == alone(model, prompt, settings(5))


def test_of_a_prompt_that_is_all_there_the_last_token_is_computed(model):
    engine, prompt = Engine(model), list(range(16))
    first, second = (run(engine, [Request(prompt, settings(), id=0)]).tokens[0] for _ in range(2))
    assert first == second == alone(model, prompt, settings())
    assert (engine.stats().reused_tokens, engine.stats().computed_tokens) == (12, 16 + 4)


def test_keys_of_another_ntk_factor_are_not_shared(model):
    """The factor of a sequence follows from the length of its prompt, 64 tokens being the first step."""
    engine, beginning = Engine(model), list(range(60))
    prompts = [beginning + [1] * count for count in (2, 30)]
    answers = [run(engine, [Request(prompt, settings(), id=0)]).tokens[0] for prompt in prompts]
    assert engine.stats().reused_tokens == 0
    assert answers == [alone(model, prompt, settings()) for prompt in prompts]


def test_blocks_that_are_kept_give_way_the_least_recently_used_first(model):
    engine = Engine(model)
    prompts = [[i] * 41 for i in range(5)]  # ten full blocks each: 44 blocks hold those of four, not of five
    for i in (0, 1, 2, 3, 0, 4):
        run(engine, [Request(prompts[i], settings(1), id=0)])
    reused = []
    for i in (0, 4, 1):
        before = engine.stats().reused_tokens
        run(engine, [Request(prompts[i], settings(1), id=0)])
        reused.append(engine.stats().reused_tokens - before)
    assert reused[:2] == [40, 40] and reused[2] < 40


# What may go wrong

def failing_once(monkeypatch, model, name, error):
    """Let the next call of a method fail, after it has computed."""
    method = getattr(model, name)

    def fail(*args):
        method(*args)
        monkeypatch.undo()
        raise error

    monkeypatch.setattr(model, name, fail)


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_requests_whose_computation_fails_end_and_the_others_go_on(model, monkeypatch, name):
    prompts, expected = GREEDY["prompts"], GREEDY["greedy"]
    engine, answers = Engine(model, max_batch=1), Answers()
    engine.add(Request(prompts[0], settings(32), id=0))
    engine.add(Request(prompts[1], settings(32), id=1))
    if name == "decode":
        answers.take(engine.step())
    error = RuntimeError("the kernel failed")
    failing_once(monkeypatch, model, name, error)
    assert engine.step() == [Output(0, None, "error", error=error)]
    check_blocks(engine)
    assert run(engine).tokens == {1: expected[1]}
    assert run(engine, [Request(prompts[0], settings(32), id=0)]).tokens == {0: expected[0]}


def test_after_a_failure_nothing_that_was_written_is_trusted(model, monkeypatch):
    engine, prompt = Engine(model, max_batch=2), list(range(17))
    failing_once(monkeypatch, model, "prefill", RuntimeError("the kernel failed"))
    run(engine, [Request(prompt, settings(), id=0), Request(prompt, settings(), id=1)])
    for cache in model.kvcache(0):
        cache.set_data(cache * 0)
    assert run(engine, [Request(prompt, settings(), id=0)]).tokens[0] == alone(model, prompt, settings())


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_an_interrupted_program_may_go_on(model, monkeypatch, name):
    engine, answers = Engine(model), Answers()
    engine.add(Request(GREEDY["prompts"][0], settings(32), id=0))
    if name == "decode":
        answers.take(engine.step())
    failing_once(monkeypatch, model, name, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    check_blocks(engine)
    while engine.has_work:
        answers.take(engine.step())
    assert answers.tokens[0] == GREEDY["greedy"][0]


@pytest.mark.parametrize("others", [{}, {"do_sample": True}, {"do_sample": True, "top_p": 0.5}], ids=str)
def test_logits_that_are_not_finite_end_their_request_alone(model, monkeypatch, others):
    engine, answers = Engine(model, max_batch=2), Answers()
    engine.add(Request(GREEDY["prompts"][0], settings(32, **others), id=0))
    engine.add(Request(GREEDY["prompts"][1], settings(32), id=1))
    answers.take(engine.step())
    decode = model.decode

    def spoil(*args):
        logits = decode(*args)
        logits[0] = np.nan
        monkeypatch.undo()
        return logits

    monkeypatch.setattr(model, "decode", spoil)
    outputs = engine.step()
    assert [output.finish_reason for output in outputs] == ["error", None]
    assert isinstance(outputs[0].error, FloatingPointError) and "request 0: the logits" in str(outputs[0].error)
    answers.take(outputs)
    while engine.has_work:
        answers.take(engine.step())
        check_blocks(engine)
    assert answers.tokens[1] == GREEDY["greedy"][1]


def test_cancelling_is_said_once_and_gives_everything_back(model):
    engine = Engine(model, max_batch=1, prefill_tokens=8)
    for i in range(3):
        engine.add(Request([i] * 20, settings(), id=i))
    engine.step()  # the first of three pieces of the first prompt
    for id in (0, 0, 2, "nobody"):
        engine.cancel(id)
    assert engine.has_work
    outputs = engine.step()
    assert outputs == [Output(0, None, "cancelled"), Output(2, None, "cancelled")]
    engine.cancel(1)
    assert engine.step() == [Output(1, None, "cancelled")]
    assert not engine.has_work and engine.stats().free_blocks == POOL
    engine.cancel(1)
    engine.add(Request([1], settings(1), id=1))
    assert run(engine).reasons == {1: "length"}, "a cancel after the end says nothing about the next of that id"


def test_requests_may_be_added_and_cancelled_from_other_threads(model):
    engine, answers = Engine(model, max_batch=4), Answers()
    prompts, expected = GREEDY["prompts"], GREEDY["greedy"]

    def client(number):
        for i in range(6):
            engine.add(Request(prompts[i % 3], settings(20), id=(number, i)))
            engine.add(Request([number, i], settings(60), id=("gone", number, i)))
            engine.cancel(("gone", number, i))

    threads = [threading.Thread(target=client, args=[number]) for number in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.has_work:
        answers.take(engine.step())
    check_blocks(engine)
    for number in range(3):
        for i in range(6):
            assert answers.tokens[number, i] == expected[i % 3][:20]
            assert answers.reasons["gone", number, i] == "cancelled"


def test_the_steps_may_run_in_a_thread_of_their_own(model):
    """As a server does that must not block; the graphs were compiled in another thread."""
    engine, result = Engine(model), []
    thread = threading.Thread(target=lambda: result.append(
        run(engine, [Request(GREEDY["prompts"][0], settings(32), id=0)])))
    thread.start()
    thread.join()
    assert result[0].tokens[0] == GREEDY["greedy"][0]


TWO_MODELS = """
import sys, threading
import numpy as np
from qwen_mindspore.generate.engine import Engine, Request
from qwen_mindspore.generate.loop import QwenForCausalLM
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.model.config import QwenConfig

checkpoint, folder, kernels = sys.argv[1:]
config = QwenConfig.from_hf_config(folder, checkpoint_name_or_path=checkpoint, use_past=True, kernels=kernels)
engines = [Engine(QwenForCausalLM(config)) for _ in range(2)]
answers = [[], []]

def work(number):
    for i in range(12):
        engines[number].add(Request([number + 1] * (i + 1), GenerationSettings(max_new_tokens=30), id=i))
        while engines[number].has_work:
            answers[number] += [output.token for output in engines[number].step()]

def run_both():
    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

run_both()
together, answers = answers, [[], []]
work(0), work(1)
print(together == answers and len(answers[0]) == len(answers[1]) == 360)
"""


@pytest.mark.process
def test_two_models_may_be_stepped_from_two_threads(tiny_checkpoint):
    """In a process of its own, which can be ended if it hangs."""
    result = subprocess.run([sys.executable, "-c", TWO_MODELS, str(tiny_checkpoint), str(TINY), "auto"],
                            capture_output=True, encoding="utf-8", timeout=240, check=False)
    assert result.stdout.splitlines()[-1:] == ["True"], result.stderr
