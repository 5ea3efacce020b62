"""`qwen-ms VERB ...`: one command with every task; each verb is the same as its script."""
import importlib
import sys

VERBS = {
    "predict": ("predict", "answer prompts, as run_qwen_7b.py does"),
    "chat": ("chat", "talk to a model, as run_qwen_7b_chat.py does"),
    "serve": ("serve", "answer over HTTP by OpenAI's interface, with a page to talk to, as serve.py does"),
    "batch": ("batch", "answer every row of a file, as batch_generate.py does"),
    "convert": ("convert", "a checkpoint from Hugging Face to MindSpore, as convert_weight.py does"),
    "export": ("export", "a checkpoint from MindSpore to Hugging Face, as convert_reversed.py does"),
    "quantize": ("quantize", "to 4 or 8 bits, as quantize.py does"),
    "perplexity": ("perplexity", "of a text at given context lengths, as perplexity.py does"),
    "benchmark": ("benchmark", "speed and memory beside peers, as benchmark.py does"),
    "benchmark-server": ("benchmark_server", "what the server costs beside its bare engine"),
    "cache": ("cache", "the models that were fetched by name: list them, delete one"),
    "audit": ("audit", "the NPU's graphs, on a machine without one, as audit_ascend.py does"),
}


def main(argv=None):
    """The command. Returns the exit code."""
    verb, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if verb in ("", "-h", "--help"):
        print(_usage())
        return 0 if verb else 2
    if verb == "--version":
        from qwen_mindspore import __version__

        print(f"qwen-ms {__version__}")
        return 0
    if verb not in VERBS:
        print(f"qwen-ms: {verb}: no such command, expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module, _ = VERBS[verb]
    sys.argv[0] = f"qwen-ms {verb}"  # what argparse calls the program
    return importlib.import_module(f"qwen_mindspore.cli.{module}").main(rest[:-1])


def _usage():
    lines = [f"  {verb:18}{what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(["usage: qwen-ms VERB ...     (qwen-ms VERB --help says more)", "", *lines])
