"""LangChain's own tests of a chat model, for ChatOpenAI with this server behind it."""
import os

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestQwen(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {"base_url": os.environ["QWEN_URL"] + "/v1", "api_key": "any", "model": os.environ["QWEN_MODEL"],
                "timeout": 60, "max_retries": 0, "stream_usage": True}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return False

    @pytest.mark.parametrize("method", ["function_calling", "json_schema"])
    def test_structured_output_by_each_method(self, model, method):
        schema = {"title": "joke", "description": "A joke.", "type": "object", "required": ["setup", "punchline"],
                  "properties": {"setup": {"type": "string"}, "punchline": {"type": "string"}}}
        result = model.with_structured_output(schema, method=method).invoke("Tell me a joke about cats.")
        assert set(result) == {"setup", "punchline"}
