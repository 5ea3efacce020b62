"""
What a server counts, for Prometheus: vLLM's names behind `qwen:`. What is counted is what the answers say of
themselves: the sums of their usage are these counters.

Source: vLLM 0.33, docs/usage/metrics.md
"""
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qwen_mindspore.server import service
from qwen_mindspore.server.logs import note

__all__ = ["CONTENT_TYPE", "FleetMetrics", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
           160.0, 640.0, 2560.0)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
ANSWERS = (1, 2, 5, 10, 20)

COUNTERS = {
    "prompt_tokens": ("Tokens of prompts.", []),
    "prompt_tokens_cached": ("Tokens of prompts whose keys and values were there already.", []),
    "generation_tokens": ("Tokens of answers.", []),
    "request_success": ("Answers that have ended, by why.", ["finished_reason"]),
    "admission_rejections": ("Requests that were not let in, by HTTP's status: 429 or 503.", ["status"]),
    "http_requests": ("Requests over HTTP, by route, method and status.", ["handler", "method", "status"]),
}
HISTOGRAMS = {
    "time_to_first_token_seconds": ("From a request's admission to its first token.", SECONDS),
    "inter_token_latency_seconds": ("Between two tokens of an answer.", SECONDS),
    "request_time_per_output_token_seconds": ("The mean of that, of each answer.", SECONDS),
    "e2e_request_latency_seconds": ("From a request's admission to its end.", SECONDS),
    "request_queue_time_seconds": ("From the admission of an answer to its first computation.", SECONDS),
    "request_prefill_time_seconds": ("From an answer's first computation to its first token.", SECONDS),
    "request_decode_time_seconds": ("From the first token of an answer to its end.", SECONDS),
    "request_prompt_tokens": ("Tokens of a request's prompts.", TOKENS),
    "request_generation_tokens": ("Tokens of a request's answers.", TOKENS),
    "request_params_n": ("Answers that a request asks for.", ANSWERS),
    "request_params_max_tokens": ("The most tokens of an answer that a request asks for.", TOKENS),
}
GAUGES = {
    "num_requests_running": "Requests that the engine is at work on.",
    "num_requests_waiting": "Requests that wait for it.",
    "kv_cache_usage_perc": "The share of the key/value cache that is in use, 0 to 1.",
}
OF_ENGINE = {
    "num_preemptions": "How often a request had to give its blocks up.",
    "prefix_cache_queries": "Tokens of prompts that were looked for in the cache.",
    "prefix_cache_hits": "Those of them that were there.",
}


class Metrics(service.Metrics):
    """
    The counters of one server, in a registry of their own.

    Args:
        model (str): The label `model_name` of all.
    """

    def __init__(self, model):
        self.model, self.engine, self._before = model, None, None
        self.registry = CollectorRegistry()
        self._of = {name: Counter(f"qwen:{name}", what, ["model_name", *labels], registry=self.registry)
                    for name, (what, labels) in COUNTERS.items()}
        self._of |= {name: Histogram(f"qwen:{name}", what, ["model_name"], buckets=buckets, registry=self.registry)
                     for name, (what, buckets) in HISTOGRAMS.items()}
        for name, metric in self._of.items():
            if name in HISTOGRAMS or not COUNTERS[name][1]:
                metric.labels(model)  # a 0 is there from the beginning
        self.registry.register(self)

    def finished(self, finished):
        """See `service.Metrics`; what the line of the log says of the request, too."""
        self._count("prompt_tokens", finished.prompt_tokens)
        self._count("prompt_tokens_cached", finished.cached_tokens)
        self._count("generation_tokens", finished.completion_tokens)
        for reason in finished.finish_reasons:
            self._count("request_success", finished_reason=reason)
        for name, value in (("request_prompt_tokens", finished.prompt_tokens), ("request_params_n", finished.n),
                            ("request_generation_tokens", finished.completion_tokens),
                            ("request_params_max_tokens", finished.max_tokens),
                            ("e2e_request_latency_seconds", finished.seconds),
                            ("time_to_first_token_seconds", finished.seconds_to_first)):
            if value is not None:
                self._observe(name, value)
        for ticket in finished.tickets:
            self._decoded(ticket)
        first = finished.seconds_to_first
        note(id=finished.id, stream=finished.stream, prompt_tokens=finished.prompt_tokens,
             cached_tokens=finished.cached_tokens, completion_tokens=finished.completion_tokens,
             finish_reason=",".join(finished.finish_reasons), ttft_ms=first and round(1000 * first, 1))

    def _decoded(self, ticket):
        if ticket.first is None or ticket.ended is None:
            return
        started = ticket.answer.started
        if started is not None:
            self._observe("request_queue_time_seconds", max(0.0, started - ticket.submitted))
            self._observe("request_prefill_time_seconds", max(0.0, ticket.first - started))
        seconds, tokens = ticket.ended - ticket.first, ticket.answer.tokens
        self._observe("request_decode_time_seconds", seconds)
        if tokens > 1:
            self._observe("request_time_per_output_token_seconds", seconds / (tokens - 1))

    def rejected(self, status):
        """See `service.Metrics`."""
        self._count("admission_rejections", status=str(status))

    def grew(self, ticket, tokens, seconds):
        """
        See `service.Metrics`. Several tokens at once share the time. The first of an answer has another metric, and
        what comes together with it has not been waited for.
        """
        count, wait = (tokens, seconds / tokens) if ticket.seen else (tokens - 1, 0.0)
        for _ in range(count):
            self._observe("inter_token_latency_seconds", wait)

    def answered(self, route, method, status):
        """
        An HTTP request has ended.

        Args:
            route (str): Which one it matched: so many there are, whatever is asked for.
            method (str): HTTP's.
            status (int): HTTP's; 0 where the client was gone before.
        """
        method = method if method in ("GET", "HEAD", "POST", "OPTIONS") else "other"
        self._count("http_requests", handler=route, method=method, status=str(status))

    def _count(self, name, amount=1, **labels):
        self._of[name].labels(model_name=self.model, **labels).inc(amount)

    def _observe(self, name, value):
        self._of[name].labels(model_name=self.model).observe(value)

    def watch(self, engine):
        """
        Tell of an engine's `stats` as well, what it has done so far left out: that was warming up.

        Args:
            engine (Engine): Answers.
        """
        self.engine, self._before = engine, engine.stats()

    def collect(self):
        """What prometheus_client asks for when the metrics are: those of the engine, as it is now."""
        if self.engine is None:
            return
        now, before, blocks = self.engine.stats(), self._before, self.engine.config.cache_blocks
        gauges = {"num_requests_running": now.running, "num_requests_waiting": now.waiting,
                  "kv_cache_usage_perc": 1 - now.free_blocks / blocks}
        hits = now.reused_tokens - before.reused_tokens
        counters = {"num_preemptions": now.evictions - before.evictions,
                    "prefix_cache_queries": now.computed_tokens - before.computed_tokens + hits,
                    "prefix_cache_hits": hits}
        for family, names, values in ((GaugeMetricFamily, GAUGES, gauges), (CounterMetricFamily, OF_ENGINE, counters)):
            for name, what in names.items():
                metric = family(f"qwen:{name}", what, labels=["model_name"])
                metric.add_metric([self.model], values[name])
                yield metric

    def text(self):
        """bytes, all of them in Prometheus' format of text."""
        return generate_latest(self.registry)

    def samples(self):
        """list[(name, what, type, list[(name, labels, value)])], all of them, to be sent to another process."""
        return [(metric.name, metric.documentation, metric.type,
                 [(sample.name, sample.labels, sample.value) for sample in metric.samples])
                for metric in self.registry.collect()]


class FleetMetrics(Metrics):
    """
    The counters of a front: those of all replicas, each with the label `replica`, and of what never reached one.

    Args:
        model (str): The label `model_name` of all.
    """

    OWN = ("qwen:http_requests", "qwen:admission_rejections")

    def __init__(self, model):
        super().__init__(model)
        self.replicas = None  # see `replicas.Replicas`

    def text(self):
        """bytes, see `Metrics.text`; not in the event loop."""
        merged = CollectorRegistry(auto_describe=False)
        families = {}
        for number, samples in self._all():
            for name, what, kind, values in samples:
                family = families.setdefault(name, Metric(name, what, kind))
                for sample, labels, value in values:
                    replica = {} if number is None else {"replica": str(number)}
                    family.add_sample(sample, {**labels, **replica}, value)
        merged.register(_Collected([family for family in families.values() if family.samples]))
        return generate_latest(merged)

    def _all(self):
        """[(number of a replica, its samples)]; the front's own number is None."""
        own = [(None, [entry for entry in self.samples() if entry[0] in self.OWN])]
        if self.replicas is None:
            return own
        up = ("qwen:replicas_up", "Replicas that answer.", "gauge",
              [("qwen:replicas_up", {"model_name": self.model}, len(self.replicas.places.up))])
        return [*own, (None, [up]), *self.replicas.metrics()]


class _Collected:
    """What prometheus_client takes for a collector: metrics that have been collected."""

    def __init__(self, metrics):
        self.metrics = metrics

    def collect(self):
        """Theirs."""
        return self.metrics
