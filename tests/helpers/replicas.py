"""Scripted engines behind a front: what Ray's processes build, and the server in this one."""
import contextlib
import os

from helpers.scripted import ScriptedEngine
from helpers.serving import running
from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.settings import GenerationSettings
from qwen_mindspore.server.app import create_app
from qwen_mindspore.server.metrics import FleetMetrics, Metrics
from qwen_mindspore.server.service import Limits, Service

__all__ = ["build_scripted", "replicated"]


def build_scripted(folder, options, limits, number):
    """What a replica is made of: every answer begins with its number and its process."""
    from qwen_mindspore.text.tokenizer import QwenTokenizer

    tokenizer = QwenTokenizer(folder)
    engine = ScriptedEngine(f"{number} {os.getpid()} " + 1000 * "x", room=4000, **options)
    settings = GenerationSettings(chat_format="chatml", max_new_tokens=20)
    service = Service("qwen-test", tokenizer, engine.config, settings, metrics=Metrics("qwen-test"),
                      limits=Limits(**limits))
    return service, lambda: Answers(engine, tokenizer)


@contextlib.contextmanager
def replicated(build, arguments, count=2, capacity=2, wanted=None, drain_seconds=5, **options):
    """A server with replicas on a cluster of this machine: Running, whose `server.replicas` has started."""
    from qwen_mindspore.server.replicas import Fleet, FleetServer, Replicas

    fleet = Fleet("qwen-test", metrics=FleetMetrics("qwen-test"), replicas=count)
    replicas = Replicas("qwen-test", build, arguments, count, capacity, wanted=wanted or {"CPU": 0.5})
    app = create_app(fleet, **options)
    with running(FleetServer, app, fleet, replicas.start, drain_seconds) as server:
        yield server
