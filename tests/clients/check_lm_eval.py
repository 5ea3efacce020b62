"""lm-evaluation-harness over HTTP: its figures are those of scripts/perplexity.py."""
import json
import os
import subprocess
import urllib.request
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

URL, FOLDER = os.environ["QWEN_URL"], Path(os.environ["QWEN_FOLDER"])
ROOT = Path(__file__).resolve().parents[2]
WINDOW = 128  # tokens that are predicted from one call
TEXT = """\
It was late in the autumn when the first ship came back to the harbor. The sailors had been away for two
years, and nobody in the town had expected to see them again. Children ran down to the water; old men took off
their hats. The captain, a quiet woman from the north, stood at the rail and counted the lights. There were
fewer than before. "We will need bread," she said, "and a carpenter, and someone who can read this." She held
up a small book, bound in green leather, whose pages were covered with signs that no one on board had
understood. The mayor took it, opened it, closed it again, and sent for the teacher of mathematics. What the
teacher found was not a story but a list: names of places, and beside each of them two numbers. For a week he
wrote on the blackboard of the school, and for a week the children had no lessons. Then he came down to the
harbor and told the captain what the book was about. It was a table of the tides, he said, but of tides that
had not come yet; the last of them would rise in the spring, and it would be higher than the tower of the
church. The captain looked at the tower for a long time. Then she asked how many ships could be built before
the spring, and the carpenter, who had only come for the ladder, said that it depended on the trees. So they
went into the forest and counted the trees, and in the evening they began to work."""


def post(path, **body):
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def model(**options):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(model=os.environ["QWEN_MODEL"], base_url=f"{URL}/v1/completions", num_concurrent=2,
                               max_retries=1, **options)


def evaluate(name, rows, lm, **config):
    """The samples of a task over a file."""
    data = FOLDER / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test", **config}
    found = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=TaskManager(include_defaults=False),
                                    bootstrap_iters=0, log_samples=True)
    return found["samples"][name]


def perplexity(name, text, context, stride):
    """The mean loss that scripts/perplexity.py finds, and of how many tokens."""
    data, report = FOLDER / f"{name}.txt", FOLDER / f"{name}.json"
    data.write_text(text, encoding="utf-8")
    subprocess.run([os.environ["QWEN_PYTHON"], str(ROOT / "scripts" / "perplexity.py"), "--config",
                    os.environ["QWEN_CONFIG"], "--load_checkpoint", os.environ["QWEN_CHECKPOINT"], "--data", str(data),
                    "--context", str(context), "--stride", str(stride), "--json", str(report)], check=True,
                   env={**os.environ, "PYTHONPATH": os.environ["PROJECT_PATH"]}, cwd=FOLDER)
    point = json.loads(report.read_text())["curves"][0]["points"][0]
    return point["loss"], point["predicted"]


def cut(text, tokens):
    """A text of so many tokens: its ids, too."""
    ids = post("/tokenize", prompt=text)["tokens"][:tokens]
    text = post("/detokenize", tokens=ids)["prompt"]
    assert post("/tokenize", prompt=text)["tokens"] == ids and len(ids) == tokens
    return text, ids


def test_the_tokenizer_is_the_servers():
    lm = model()
    assert lm.tokenizer_backend == "remote"
    assert lm.tok_encode("It was late") == post("/tokenize", prompt="It was late")["tokens"]
    assert lm.prefix_token_id == post("/tokenize", prompt="<|endoftext|>", parse_special=True)["tokens"][0]


def test_the_likelihood_of_a_text_in_windows():
    text, ids = cut(TEXT, 1 + 2 * WINDOW)
    rest = post("/detokenize", tokens=ids[1:])["prompt"]
    lm = model(custom_prefix_token_id=ids[0], max_length=WINDOW + 2)
    [sample] = evaluate("windows", [{"text": rest}], lm, output_type="loglikelihood_rolling", doc_to_text="",
                        doc_to_target="{{text}}", metric_list=[{"metric": "bits_per_byte"}])
    loss, predicted = perplexity("windows", text, WINDOW + 1, WINDOW)
    assert predicted == 2 * WINDOW
    assert -sample["filtered_resps"][0] / predicted == pytest.approx(loss, abs=1e-5)


def test_the_likelihood_of_a_continuation():
    text, ids = cut(TEXT, 100)
    context, continuation = (post("/detokenize", tokens=part)["prompt"] for part in (ids[:60], ids[60:]))
    [sample] = evaluate("continuation", [{"context": context, "continuation": continuation}], model(),
                        output_type="loglikelihood", doc_to_text="{{context}}", doc_to_target="{{continuation}}",
                        target_delimiter="", metric_list=[{"metric": "perplexity"}])
    loss, predicted = perplexity("continuation", text, 100, 40)
    assert predicted == 40
    likelihood, is_greedy = sample["filtered_resps"][0]
    assert -likelihood / predicted == pytest.approx(loss, abs=1e-5) and not is_greedy


def test_choices_and_whether_they_are_greedy():
    rows = [{"question": "The capital of France is", "choices": [" a shoe", " Paris"], "answer": 1}]
    [sample] = evaluate("choices", rows, model(), output_type="multiple_choice", doc_to_text="{{question}}",
                        doc_to_choice="{{choices}}", doc_to_target="{{answer}}", target_delimiter="",
                        metric_list=[{"metric": "acc"}])
    assert sample["acc"] == 1.0
    assert [response[1] for response in sample["filtered_resps"]] == [False, True]


def test_answers_till_a_stop_word():
    [sample] = evaluate("answers", [{"question": "The capital of France is"}], model(), output_type="generate_until",
                        doc_to_text="{{question}}", doc_to_target=" Paris", target_delimiter="",
                        generation_kwargs={"until": ["."], "max_gen_toks": 16},
                        metric_list=[{"metric": "exact_match"}])
    assert "Paris" in sample["filtered_resps"][0] and "." not in sample["filtered_resps"][0]
