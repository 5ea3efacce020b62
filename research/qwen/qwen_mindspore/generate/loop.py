"""
MindFormers' interface to generation (GenerationConfig, logits processors, streamers), with far less of the host's time
a token, and with checks of prompts and settings.
"""
import copy
import time

import numpy as np
from mindformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)
from mindformers.generation.utils import GenerateOutput
from mindformers.tools.logger import logger
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor

import qwen_mindspore.generate.pipeline  # registered with the model, so that one import serves a whole YAML
import qwen_mindspore.text.chatml
import qwen_mindspore.text.processor  # noqa: F401
from qwen_mindspore.common.kinds import read_as
from qwen_mindspore.common.text import shown
from qwen_mindspore.generate.arguments import check_helpers, generation_arguments, prompts_of
from qwen_mindspore.generate.blocks import call_rows, piece_size
from qwen_mindspore.generate.sampling import check_finite, check_logits, check_prompt, next_token, penalize
from qwen_mindspore.generate.settings import ALLOWED
from qwen_mindspore.model.causal_lm import CausalLM

__all__ = ["QwenForCausalLM"]


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class QwenForCausalLM(CausalLM):
    """
    Qwen as MindFormers knows it: `CausalLM`, which says what it takes and gives, and MindFormers' `generate`.

    Args:
        config (QwenConfig or LlamaConfig): See `CausalLM`.
    """

    def generate(self, input_ids, generation_config=None, logits_processor=None, streamer=None, seed=None,
                 attention_mask=None, **kwargs):
        """
        Continue prompts, as MindFormers' `generate` does.

        Args:
            input_ids: One list of ids, or a batch; prompts of a batch may differ in length: such lists carry no padding
                and are taken as they are. Padding on the right (`pad_token_id`) of an array's rows, or of lists of one
                length, is no part of a prompt. Where that is also the id that ends a text, as with the released Qwens,
                nobody can tell the one from the other: of a run of it at the end of all lists nothing stays, but for a
                single one that all of them have; of arrays nothing. Whose prompts end with it gives an
                `attention_mask`, or lists of different lengths. See `arguments.prompts_of`.
            generation_config (GenerationConfig): Default: by the model's config.
            logits_processor (LogitsProcessorList): In addition to those that the settings ask for.
            streamer: Its `put` gets the prompts, then each step's id (a list of ids for a batch); then `end()`.
            seed (int): Makes sampling repeatable. Default: numpy's global random state goes on.
            attention_mask: [B, S] of 0 and 1, where the ids of a padded batch are the prompt's; padding on the left
                needs it.
            kwargs: Settings that differ from generation_config's: max_length, max_new_tokens, do_sample, top_k, top_p,
                temperature (0: the likeliest token is taken), repetition_penalty, eos_token_id (an id, a list; None or
                -1: none), pad_token_id, return_dict_in_generate, ...; `stop_words_ids`, sequences of ids that end an
                answer as an eos_token_id does, and stay its end; with do_sample `num_return_sequences`, so many answers
                to each prompt, one behind the other.

        Returns:
            A list of int32 arrays, prompt and continuation of each sequence; with `return_dict_in_generate` a
            GenerateOutput of those, and of scores and logits, [B, vocab_size] a step, where asked for.

        Raises:
            ValueError: A prompt that is empty or no list of ids, an id outside the vocabulary, a prompt that leaves no
                room for an answer, a batch that the key/value cache can't hold, a setting out of range or unknown.
            FloatingPointError: The logits of a sequence are not finite.
        """
        settings, stop_words, sequences = generation_arguments(self.config, generation_config, kwargs)
        check_helpers(logits_processor, streamer)
        seed = read_as(ALLOWED["seed"], "seed", seed)
        ends = {*settings.eos_token_id, *read_as(ALLOWED["eos_token_id"], "eos_token_id", self.config.eos_token_id)}
        prompts = [prompt for prompt in prompts_of(input_ids, attention_mask, settings.pad_token_id, ends)
                   for _ in range(sequences)]
        limits = [self._limit(row, prompt, settings) for row, prompt in enumerate(prompts)]
        if self.use_past:
            self._check_cache(limits)
        processors = self._processors(settings, logits_processor)
        uniform = (np.random if seed is None else np.random.RandomState(seed)).random_sample
        was_training = self.training
        self.set_train(False)
        start = time.time()
        try:
            out = self._continue(Batch(prompts, limits, self.config, [*stop_words, *zip(settings.eos_token_id)]),
                                 settings, processors, streamer, uniform)
        finally:
            if was_training:
                self.set_train(True)
        generated = sum(map(len, out.sequences)) - sum(map(len, prompts))
        logger.info("%d tokens generated, %.1f tokens/s", generated, generated / (time.time() - start))
        return out if settings.return_dict_in_generate else out.sequences

    def postprocess(self, input_ids, is_finished, res, generation_config, valid_length_each_example, current_index,
                    logits_processor=None, logits_warper=None, need_gather_logits=True):
        """
        MindFormers' choice of tokens, which its own loop and `infer` make. Logits that are not finite choose none: a
        FloatingPointError, as in `generate`.
        """
        logits = (res[0] if isinstance(res, tuple) else res).asnumpy()
        logits = logits.reshape(-1, logits.shape[-1])
        if need_gather_logits and len(logits) > len(current_index):
            logits = logits[np.asarray(current_index)]
        for row in np.flatnonzero(~np.asarray(is_finished, bool)):
            place = f"position {valid_length_each_example[row]}"
            check_logits(logits[row], f"prompt {row}", place)
            check_finite(logits[row].max(), f"prompt {row}", place)
        return super().postprocess(input_ids, is_finished, res, generation_config, valid_length_each_example,
                                   current_index, logits_processor, logits_warper, need_gather_logits)

    def _processors(self, settings, own):
        """MindFormers' logits processors and those of the caller; what holds the end back is in `_choose`."""
        # MindFormers goes by the longest prompt, and by what is not padding: it fails at a prompt that is an end.
        settings = copy.copy(settings)
        settings.min_length = settings.min_new_tokens = None
        processors = LogitsProcessorList()  # takes no list
        processors.extend(own or ())
        return self.get_logits_processor(settings, 0, processors)

    def _continue(self, batch, settings, processors, streamer, uniform):
        """The loop: a step computes the logits of every sequence's last token, and chooses the next."""
        logits_of_steps, scores_of_steps = (), ()
        if streamer is not None:
            streamer.put(batch.ids[:, :batch.lengths.max()])
        self.cache_owner = batch
        logits = self._logits_of(batch, is_prompt=True)
        while True:
            if settings.return_dict_in_generate and settings.output_logits:
                logits_of_steps += (logits.copy(),)
            tokens = self._choose(batch, logits, settings, processors, uniform)
            if settings.return_dict_in_generate and settings.output_scores:
                scores_of_steps += (logits,)
            batch.append(tokens)
            if streamer is not None:
                streamer.put(tokens if len(tokens) > 1 else tokens[0])
            if batch.finished.all():
                break
            logits = self._logits_of(batch, is_prompt=False)
        if streamer is not None:
            streamer.end()
        sequences = [ids[:length] for ids, length in zip(batch.ids, batch.lengths)]
        return GenerateOutput(sequences=sequences, logits=logits_of_steps or None, scores=scores_of_steps or None)

    def _choose(self, batch, logits, settings, processors, uniform):
        """The next token of each sequence; `logits` [B, vocab_size] become the scores that chose it."""
        tokens, draws = [], settings.do_sample and settings.temperature not in (None, 0.0, 1.0)
        for row, is_finished in enumerate(batch.finished):
            if is_finished:
                tokens.append(int(batch.ids[row, batch.lengths[row] - 1]))
                continue
            name, answered = f"prompt {row}", batch.lengths[row] - batch.prompt_lengths[row]
            place = f"token {answered + 1} of the answer"
            scores = logits[row]
            check_logits(scores, name, place)
            if answered < (settings.min_new_tokens or 0) or batch.lengths[row] < (settings.min_length or 0):
                _check_held(scores, settings.eos_token_id, name, place)
                scores[settings.eos_token_id] = -np.inf
            for processor in processors:
                scores = _process(processor, batch.ids[row, :batch.lengths[row]], scores)
            tokens.append(next_token(scores, settings, uniform, name, place))
            if settings.output_scores:
                with np.errstate(over="ignore"):
                    logits[row] = scores / settings.temperature if draws else scores
        return tokens

    def _logits_of(self, batch, is_prompt):
        """Logits [B, vocab_size] of the last tokens."""
        lengths = batch.lengths
        if not self.use_past:
            return self.whole(batch.ids[:, :lengths.max()], lengths, batch.prompt_lengths)
        if is_prompt:
            return self._logits_of_prompts(batch)
        rows = np.arange(len(lengths))
        if piece_size(self.config):
            rows = call_rows(np.ones_like(lengths))
        ids = batch.ids[rows, lengths[rows] - 1]
        return self.decode(ids, lengths[rows], batch.block_tables[rows])[:len(lengths)]

    def _logits_of_prompts(self, batch):
        """Logits [B, vocab_size] of the last tokens of prompts, computed at once, or, as in the engine, in pieces."""
        size = piece_size(self.config)
        if size is None:
            return self._prefill_rows(batch, np.arange(len(batch.lengths)), 0, batch.lengths)
        logits = np.empty((len(batch.lengths), self.config.vocab_size), np.float32)
        for start in range(0, int(batch.lengths.max()), size):
            ends = np.minimum(batch.lengths, start + size)
            for rows in (np.flatnonzero(ends - start > 1), np.flatnonzero(ends - start == 1)):  # see `call_rows`
                if len(rows):
                    again = rows[call_rows(ends[rows] - start)]
                    logits[rows] = self._prefill_rows(batch, again, start, ends)[:len(rows)]
        return logits

    def _prefill_rows(self, batch, rows, start, ends):
        """Logits [rows, vocab_size] behind the tokens from `start` to `ends` [B] of some rows."""
        ids = np.concatenate([batch.ids[row, start:ends[row]] for row in rows])
        return self.prefill(ids, ends[rows] - start, ends[rows], batch.lengths[rows], batch.block_tables[rows])

    def _limit(self, row, prompt, settings):
        """How many tokens a sequence may have with its answer; ValueError where its prompt can't be answered."""
        length = len(prompt)
        if length == 0:
            raise ValueError(f"prompt {row} is empty (or nothing but padding, id {settings.pad_token_id})")
        check_prompt(prompt, self.config.vocab_size, self.config.seq_length, f"prompt {row}")
        if settings.max_new_tokens is None and length >= settings.max_length:
            raise ValueError(f"prompt {row} has {length} tokens, which max_length={settings.max_length} (prompt and "
                             "answer together) leaves no answer for: raise it, or give max_new_tokens")
        limit = settings.max_length if settings.max_new_tokens is None else length + settings.max_new_tokens
        return min(limit, self.config.seq_length)

    def _check_cache(self, limits):
        """ValueError where sequences of so many tokens don't fit into the key/value cache together."""
        config = self.config
        needed = sum(-(-limit // config.block_size) for limit in limits)
        if needed > config.cache_blocks:
            raise ValueError(
                f"{len(limits)} prompts need {needed} blocks of the key/value cache, which has {config.cache_blocks} "
                f"(blocks of {config.block_size} tokens; batch_size {config.batch_size}, seq_length "
                f"{config.seq_length}): raise batch_size or num_blocks, or ask for fewer tokens")


class Batch:
    """
    The sequences of one `generate`, and where the cache holds them.

    Attributes:
        ends (list[tuple[int]]): Ids that end an answer.
        ids (np.ndarray): [B, longest limit] int32; what is not there yet repeats the sequence's first id.
        lengths, prompt_lengths (np.ndarray): [B] int32.
        finished (np.ndarray): [B] bool.
        block_tables (np.ndarray): [B, blocks of seq_length] int32, -1 beyond a sequence's limit.
    """

    def __init__(self, prompts, limits, config, ends):
        self.ends = list(map(tuple, ends))
        self.limits = np.array(limits)
        self.prompt_lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        self.lengths = self.prompt_lengths.copy()
        self.finished = np.zeros(len(prompts), bool)
        self.ids = np.empty((len(prompts), max(limits)), np.int32)
        self.block_tables = np.full((len(prompts), config.blocks_per_sequence), -1, np.int32)
        first = 0
        for row, prompt in enumerate(prompts):
            # A logits processor that looks at all ids, as the repetition penalty does, must see the sequence's alone.
            self.ids[row] = prompt[0]
            self.ids[row, :len(prompt)] = prompt
            blocks = -(-limits[row] // config.block_size)
            self.block_tables[row, :blocks] = np.arange(first, first + blocks)
            first += blocks

    def append(self, tokens):
        """Add a token to each unfinished sequence, and finish those whose answer ends with one of the `ends`."""
        for row in np.flatnonzero(~self.finished):
            self.ids[row, self.lengths[row]] = tokens[row]
            self.lengths[row] += 1
            answer = self.ids[row, self.prompt_lengths[row]:self.lengths[row]]
            self.finished[row] = self.lengths[row] == self.limits[row] or any(
                end[-1] == tokens[row] and tuple(answer[-len(end):]) == end for end in self.ends)


def _check_held(logits, ends, name, place):
    """FloatingPointError for logits that are not finite, which are about to be overwritten."""
    if len(ends):
        check_finite(logits[ends].max(), name, place)


def _process(processor, ids, logits):
    """A logits processor's answer to ids [S] and logits [vocab_size], in numpy where it can."""
    if type(processor) is RepetitionPenaltyLogitsProcessor:
        return penalize(logits, ids, processor.penalty)
    if isinstance(processor, LogitsProcessor) and type(processor).process_np is not LogitsProcessor.process_np:
        found = processor.process_np(logits[None], ids[None])
    else:
        found = processor(Tensor(ids[None]), Tensor(logits[None]))
    found = np.asarray(found.asnumpy() if hasattr(found, "asnumpy") else found)
    if found.shape != (1, len(logits)):
        raise ValueError(f"logits_processor: {shown(processor)}: expected logits of shape {(1, len(logits))}, found "
                         f"{shown(found)}")
    return found[0]
