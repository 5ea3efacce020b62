"""Schemathesis reads the server's /openapi.json and sends what it allows, and what it forbids."""
import os

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = int(os.environ.get("QWEN_EXAMPLES", "40"))
URL = os.environ["QWEN_URL"]

schema = schemathesis.openapi.from_url(URL + "/openapi.json")
schema.config.generation.update(modes=list(schemathesis.GenerationMode))
# A schema can't say that a conversation needs a question, or that two fields must fit: some requests that it allows
# are refused, by name.
NOT_ASKED = [positive_data_acceptance]


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_interface_is_what_it_says(case):
    if isinstance(case.body, dict):  # many long answers find nothing that short ones don't
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(case.body.get(name), int) and case.body[name] > 8:
                case.body[name] = 8
    case.call_and_validate(base_url=URL, timeout=60, excluded_checks=NOT_ASKED)
