"""What a server counts: vLLM's names, and the sums of what the answers say."""
import re
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen_mindspore.generate.engine import Stats
from qwen_mindspore.server import logs
from qwen_mindspore.server.metrics import Metrics
from qwen_mindspore.server.service import Finished


def values(metrics):
    """{name with labels other than the model's: value}"""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "model_name"}
            assert sample.labels["model_name"] == "m"
            found[(sample.name, *labels.values())] = sample.value
    return found


def finished(**changes):
    answer = SimpleNamespace(tokens=5, started=0.75)
    ticket = SimpleNamespace(submitted=0.25, first=1.0, ended=3.0, seen=0, answer=answer)
    return Finished(**{"id": "cmpl-1", "endpoint": "completions", "stream": False, "prompt_tokens": 10,
                       "cached_tokens": 4, "completion_tokens": 5, "finish_reasons": ("stop",), "n": 1,
                       "max_tokens": 16, "seconds_to_first": 0.3, "seconds": 2.5, "tickets": (ticket,), **changes})


def test_there_is_a_nought_before_the_first_request():
    found = values(Metrics("m"))
    for name in ("prompt_tokens", "prompt_tokens_cached", "generation_tokens"):
        assert found[f"qwen:{name}_total",] == 0
    assert found["qwen:e2e_request_latency_seconds_count",] == 0


def test_what_is_finished_is_added_up():
    metrics = Metrics("m")
    metrics.finished(finished())
    metrics.finished(finished(prompt_tokens=3, cached_tokens=0, completion_tokens=7, n=2,
                              finish_reasons=("length", "stop"), seconds_to_first=None, tickets=()))
    found = values(metrics)
    assert found["qwen:prompt_tokens_total",] == 13 and found["qwen:prompt_tokens_cached_total",] == 4
    assert found["qwen:generation_tokens_total",] == 12
    assert found["qwen:request_success_total", "stop"] == 2 and found["qwen:request_success_total", "length"] == 1
    assert found["qwen:time_to_first_token_seconds_count",] == 1
    assert found["qwen:e2e_request_latency_seconds_sum",] == 5
    assert found["qwen:request_queue_time_seconds_sum",] == 0.5
    assert found["qwen:request_prefill_time_seconds_sum",] == 0.25
    assert found["qwen:request_decode_time_seconds_sum",] == 2
    assert found["qwen:request_time_per_output_token_seconds_sum",] == 0.5, "the first token is not one of them"
    assert found["qwen:request_params_n_sum",] == 3 and found["qwen:request_params_max_tokens_count",] == 2


def test_tokens_that_come_together_share_the_time_and_the_first_is_none_of_them():
    metrics, ticket = Metrics("m"), SimpleNamespace(seen=0)
    metrics.grew(ticket, 2, 0.9)
    ticket.seen = 2
    metrics.grew(ticket, 4, 0.4)
    found = values(metrics)
    assert found["qwen:inter_token_latency_seconds_count",] == 1 + 4
    assert found["qwen:inter_token_latency_seconds_sum",] == pytest.approx(0.4)


def test_what_is_not_let_in_is_counted_by_status():
    metrics = Metrics("m")
    metrics.rejected(429)
    metrics.rejected(429)
    metrics.rejected(503)
    found = values(metrics)
    assert found["qwen:admission_rejections_total", "429"] == 2
    assert found["qwen:admission_rejections_total", "503"] == 1


def test_requests_are_counted_by_route_and_methods_that_there_are():
    metrics = Metrics("m")
    metrics.answered("/v1/models", "GET", 200)
    metrics.answered("other", "BREW", 404)
    found = values(metrics)
    assert found["qwen:http_requests_total", "/v1/models", "GET", "200"] == 1
    assert found["qwen:http_requests_total", "other", "other", "404"] == 1


def test_the_engine_is_asked_when_the_metrics_are_and_its_warming_up_left_out():
    metrics, engine = Metrics("m"), SimpleNamespace(config=SimpleNamespace(cache_blocks=10))
    engine.stats = lambda: Stats(0, 0, 10, 2, 100, 7, 1)
    metrics.watch(engine)
    engine.stats = lambda: Stats(3, 2, 4, 0, 150, 17, 4)
    found = values(metrics)
    assert found["qwen:num_requests_running",] == 3 and found["qwen:num_requests_waiting",] == 2
    assert found["qwen:kv_cache_usage_perc",] == pytest.approx(0.6)
    assert found["qwen:num_preemptions_total",] == 3
    assert found["qwen:prefix_cache_queries_total",] == 60 and found["qwen:prefix_cache_hits_total",] == 10


def test_every_metric_says_what_it_is():
    text = Metrics("m").text().decode()
    names = set(re.findall(r"^(qwen:\w+?)(?:_total|_created|_bucket|_sum|_count)?[{ ]", text, re.M))
    assert names and names <= {name.removesuffix("_total").removesuffix("_created")
                               for name in re.findall(r"# HELP (\S+) \w", text)}


def test_a_request_that_is_finished_is_noted_for_its_line_of_the_log():
    notes = {}
    token = logs.NOTES.set(notes)
    Metrics("m").finished(finished(finish_reasons=("stop", "length")))
    logs.NOTES.reset(token)
    assert notes == {"id": "cmpl-1", "stream": False, "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5,
                     "finish_reason": "stop,length", "ttft_ms": 300.0}
