"""What the server costs beside its engine: the same prompts both ways, every answer compared, and a table of it."""
import pytest

from qwen_mindspore.cli.benchmark_server import parse_args
from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.engine import Engine
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.benchmark import benchmark, table
from qwen_mindspore.server.service import Service


def test_options_are_its_own_and_the_servers():
    args, options = parse_args(["--rounds", "2", "--concurrency", "1,3", "--load_checkpoint", "x", "--max_batch", "3"])
    assert (args.rounds, args.concurrency, options.load_checkpoint, options.batch_size) == (2, [1, 3], "x", 3)


@pytest.mark.process
def test_both_ways_give_the_same_answers_and_are_timed(build_tiny, tokenizer):
    model = build_tiny(use_past=True, seq_length=64, batch_size=2)
    service = Service("tiny", tokenizer, model.config, GenerationSettings(chat_format="raw"), chat=False)
    report = benchmark(service, lambda: Answers(Engine(model), tokenizer), [1, 3], 6, 5, rounds=2)
    for point, count in zip(report["points"], (1, 3)):
        assert point["concurrency"] == count and point["same_text"]
        for way in ("engine", "server"):
            assert len(point[way]["rounds"]) == 2 and point[way]["tokens_per_second"] > 0
            assert point[way]["first_token_seconds"] > 0
        assert point["ratio"] == point["server"]["tokens_per_second"] / point["engine"]["tokens_per_second"]
    lines = table(report).splitlines()
    assert lines[0] == "tiny, prompts of 6 tokens, answers of 5" and len(lines) == 4
    assert all(line.endswith("yes") for line in lines[2:])
