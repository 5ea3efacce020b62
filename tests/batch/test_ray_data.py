"""Batch generation on Ray: what its parts do, and a local cluster with two models beside one process."""
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from helpers import ROOT
from helpers.batch import FakeEngine
from qwen_mindspore.batch import ray_data as batch_ray
from qwen_mindspore.batch.journal import ANSWER, ERROR, Journal
from qwen_mindspore.batch.ray_data import Actor
from qwen_mindspore.batch.worker import RowOptions, Worker
from qwen_mindspore.cli.batch import main, parse_args
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.text.tokenizer import QwenTokenizer


@pytest.fixture
def engine():
    return FakeEngine(max_batch=3)


@pytest.fixture
def actor(tmp_path, tiny_hf, monkeypatch, engine):
    """An actor as Ray makes it, with the quick engine."""
    monkeypatch.chdir(tmp_path)
    worker = Worker(engine, QwenTokenizer(str(tiny_hf)), GenerationSettings(), RowOptions())
    monkeypatch.setattr(batch_ray, "_build_worker", lambda args: worker)
    return Actor(None, str(tmp_path))


def group(*prompts, first=1):
    rows = [[number, {"prompt": prompt}, None, None] for number, prompt in enumerate(prompts, first)]
    return {"group": [json.dumps(rows)]}


def results_of(batches):
    return [json.loads(batch["result"][0]) for batch in batches]


def test_an_actor_answers_a_group_of_rows(actor):
    batches = list(actor(group("ab", "", "abc")))
    results = {number: (kind, content) for number, kind, content in results_of(batches)}
    assert [results[number][0] for number in (1, 2, 3)] == [ANSWER, ERROR, ANSWER]
    assert results[3][1]["response"] == "cba" and sum(batch["tokens"][0] for batch in batches) == 7


def test_several_groups_share_the_engine(actor, engine):
    groups = [group(*(f"{first}-{i}" for i in range(7)), first=first) for first in (1, 11, 21)]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda rows: results_of(actor(rows)), groups))
    for first, results in zip((1, 11, 21), answers):
        assert {number: content["prompt"] for number, _, content in results} == {
            first + i: f"{first}-{i}" for i in range(7)}, "each call gets its own rows"
    assert engine.most > 3, "the next group waits behind the one at work"


def test_what_breaks_an_actor_reaches_who_called_it(actor, engine):
    def step():
        raise MemoryError("no memory left")

    engine.step = step
    with pytest.raises(MemoryError):
        list(actor(group("ab")))


def test_rows_travel_in_groups_without_those_that_are_done(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"prompt {number}\n" for number in range(1, 11)))
    args = SimpleNamespace(input=str(path), prompt_column=None, batch_size=3)
    finished = [False, True, False, True, True]  # of rows 0 to 4
    groups = [json.loads(batch["group"][0]) for batch in batch_ray._read_groups(None, args, "text", finished)]
    assert [[row[0] for row in rows] for rows in groups] == [[2, 5, 6], [7, 8, 9], [10]]
    assert groups[2] == [[10, {"prompt": "prompt 10"}, None, None]]


@pytest.mark.parametrize("device, arguments, there, expected, waits", [
    ("CPU", [], {"CPU": 8}, {"num_cpus": 4}, False),
    ("CPU", ["--ray_actors", "16"], {"CPU": 8}, {"num_cpus": 1}, True),
    ("CPU", ["--ray_resources", "CPU=1.5,memory=100"], {"CPU": 8, "memory": 300},
     {"num_cpus": 1.5, "resources": {"memory": 100}}, False),
    ("Ascend", [], {"CPU": 8, "NPU": 2}, {"num_cpus": 0, "resources": {"NPU": 1}}, False),
    ("Ascend", ["--ray_actors", "4"], {"CPU": 8, "NPU": 2}, {"num_cpus": 0, "resources": {"NPU": 1}}, True),
])
def test_an_actor_takes_an_npu_or_its_share_of_the_cpus(device, arguments, there, expected, waits, capsys):
    args = parse_args(["--input", "a", "--output", "b", "--ray", "auto", "--ray_actors", "2", *arguments])
    config = SimpleNamespace(context=SimpleNamespace(device_target=device))
    ray = SimpleNamespace(cluster_resources=lambda: there, nodes=lambda: [{"Alive": True, "Resources": there}])
    assert batch_ray._resources(args, config, ray) == expected
    assert ("those that find no place wait" in capsys.readouterr().err) == waits


@pytest.mark.process
def test_two_actors_on_a_local_cluster_go_on_with_what_one_process_began(tmp_path, tiny_yaml, tiny_checkpoint,
                                                                        monkeypatch):
    """And the output is byte for byte that of one process."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"row {i} " * (i % 6 + 1), "max_new_tokens": 3 + 7 * i % 40} for i in range(40)]
    lines = [json.dumps(row) for row in rows]
    lines[7] = "bad"
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    arguments = ["--config", tiny_yaml("raw"), "--load_checkpoint", str(tiny_checkpoint), "--input", "in.jsonl",
                 "--batch_size", "4", "--do_sample", "true"]
    assert main([*arguments, "--output", "alone.jsonl"]) == 0

    add = Journal.add

    def add_or_stop(journal, *row):
        if sum(journal.counts.values()) == 9:
            raise KeyboardInterrupt
        add(journal, *row)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", add_or_stop)
        assert main([*arguments, "--output", "ray.jsonl"]) == 130
    result = subprocess.run([sys.executable, str(ROOT / "scripts/batch_generate.py"), *arguments, "--output",
                             "ray.jsonl", "--ray", "local", "--ray_actors", "2"], capture_output=True, text=True,
                            timeout=1200, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and "resuming behind 9 of 40 rows" in result.stderr and "40/40" in result.stderr
    for name in ("", ".errors.jsonl", ".meta.json"):
        assert (tmp_path / f"ray.jsonl{name}").read_bytes() == (tmp_path / f"alone.jsonl{name}").read_bytes()
