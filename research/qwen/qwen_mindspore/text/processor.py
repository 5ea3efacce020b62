"""The processor of Qwen: what the `processor:` section of a YAML builds around the tokenizer."""
from mindformers.models.llama.llama_processor import LlamaProcessor
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

__all__ = ["QwenProcessor"]


@MindFormerRegister.register(MindFormerModuleType.PROCESSOR)
class QwenProcessor(LlamaProcessor):
    """LlamaProcessor around a QwenTokenizer.

    Args:
        tokenizer (PreTrainedTokenizerBase): a QwenTokenizer or a tokenizer derived from it.
        max_length (int): length, in tokens, to which texts are padded. Default: 128.
        padding (str | bool): as in a call of the tokenizer. Default: "max_length".
        return_tensors (str): "ms" for Tensors (default), "np" for arrays.

    Calling it on a str or a list of str gives `{"text": ids}`, ids int of shape [texts, length].

    Raises:
        ValueError: `tokenizer` is not a MindFormers tokenizer.
    """

    # MindFormers looks the class up among its own; this name of the list stands for any tokenizer.
    tokenizer_class = "AutoTokenizer"
