"""MindFormers' text generation pipeline, which its Trainer drives: the one place that knows model and tokenizer."""
from mindformers.pipeline.text_generation_pipeline import TextGenerationPipeline as MindFormersPipeline
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from qwen_mindspore.generate.vocabulary import check_vocabulary
from qwen_mindspore.model.causal_lm import CausalLM

__all__ = ["TextGenerationPipeline"]


@MindFormerRegister.register(MindFormerModuleType.PIPELINE, alias="text_generation")
class TextGenerationPipeline(MindFormersPipeline):
    """
    As MindFormers', which it takes the place of. A Trainer builds the tokenizer without a look at the checkpoint: where
    a YAML names no vocabulary, that is Qwen's official one, whatever the model.

    Raises:
        ValueError: The vocabulary is not that of a Qwen.
    """

    def __init__(self, model, tokenizer=None, **kwargs):
        super().__init__(model, tokenizer=tokenizer, **kwargs)
        if isinstance(self.network, CausalLM):
            check_vocabulary(tokenizer, self.network.config.vocab_size)
