"""The names under which tests of the server first knew the engine's side, before it was there."""
from qwen_mindspore.generate.answers import Answers
from qwen_mindspore.generate.choice import Logprob
from qwen_mindspore.generate.requests import Output, Request
from qwen_mindspore.generate.settings import GenerationSettings as Settings

__all__ = ["Answers", "Logprob", "Output", "Request", "Settings"]
