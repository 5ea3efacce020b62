"""
The generate loop of Qwen: MindFormers' interface (GenerationConfig, logits processors, streamers), with far less of
the host's time a token, and exact sampling without sorting the vocabulary.
"""
import copy
import time

import numpy as np
from mindformers.generation.generation_config import GenerationConfig
from mindformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from mindformers.generation.utils import GenerateOutput
from mindformers.tools.logger import logger
from mindspore import Tensor

__all__ = ["QwenGeneration", "check_sampling", "sample"]


def check_sampling(settings):
    """
    Raises:
        ValueError: A sampling setting of a GenerationConfig is out of its range.
    """
    for name, allowed, valid in (("temperature", "above 0", lambda x: x > 0),
                                 ("top_k", "a whole number from 0, which is off", lambda x: x == int(x) >= 0),
                                 ("top_p", "above 0 and up to 1, which is off", lambda x: 0 < x <= 1),
                                 ("repetition_penalty", "above 0", lambda x: x > 0)):
        value = getattr(settings, name)
        if value is not None and not valid(value):
            raise ValueError(f"{name}: expected {allowed}, found {value}")


def sample(logits, settings, uniform):
    """
    Draw a token: softmax of logits / temperature, cut to the `top_k` likeliest tokens, then to the fewest likeliest
    ones that hold `top_p` of what is left.

    Args:
        logits (np.ndarray): [vocab_size] float32; altered.
        settings (GenerationConfig): `temperature`, `top_k` (0 or None: off), `top_p` (1 or None: off).
        uniform (float): A random number from [0, 1).

    Returns:
        int, the token.

    Source: Fan et al., arXiv:1805.04833 (top-k); Holtzman et al., arXiv:1904.09751 (top-p)
    """
    if settings.temperature not in (None, 1.0):
        logits /= settings.temperature
    top_k, top_p = settings.top_k or len(logits), settings.top_p or 1.0
    weights = np.exp(logits - logits.max())
    if top_k < len(logits):
        kept = np.argpartition(weights, -top_k)[-top_k:]
        return _draw(kept, weights[kept], top_p, uniform)
    if top_p == 1.0:
        return _draw(None, weights, top_p, uniform)
    # The likeliest tokens that hold top_p are among those above any threshold whose tokens hold as much.
    total = weights.sum(dtype=np.float64)
    for threshold in (1e-3, 1e-5, 0.0):
        kept = np.flatnonzero(weights >= threshold)
        if weights[kept].sum(dtype=np.float64) >= top_p * total:
            return _draw(kept, weights[kept], top_p, uniform, total)
    raise ValueError("the logits are not finite")


def _draw(tokens, weights, top_p, uniform, total=None):
    """One of `tokens` (None: their numbers) in proportion to `weights`, cut to the fewest that hold top_p of total."""
    if top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        sums = np.cumsum(weights[order], dtype=np.float64)
        count = int(np.searchsorted(sums, top_p * (total or sums[-1]))) + 1
        tokens, sums = tokens[order[:count]], sums[:count]
    else:
        sums = np.cumsum(weights, dtype=np.float64)
    place = min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), len(sums) - 1)
    return place if tokens is None else int(tokens[place])


class QwenGeneration:
    """What `QwenForCausalLM` generates with. It needs the model's `__call__`, `config` and `use_past`."""

    def generate(self, input_ids, generation_config=None, logits_processor=None, streamer=None, seed=None,
                 attention_mask=None, **kwargs):
        """
        Continue prompts, as MindFormers' `generate` does.

        Args:
            input_ids: One list of ids, or a batch; prompts of a batch may differ in length. Padding on the right
                (`pad_token_id`) is no part of a prompt.
            generation_config (GenerationConfig): Default: by the model's config.
            logits_processor (LogitsProcessorList): In addition to those that the settings ask for.
            streamer: Its `put` gets the prompts, then each step's id (a list of ids for a batch); then `end()`.
            seed (int): Makes sampling repeatable. Default: numpy's global random state goes on.
            attention_mask: [B, S] of 0 and 1, where the ids of a padded batch are the prompt's; padding on the left
                needs it.
            kwargs: Settings that differ from generation_config's: max_length, max_new_tokens, do_sample, top_k, top_p,
                temperature, repetition_penalty, eos_token_id, pad_token_id, return_dict_in_generate, ...

        Returns:
            A list of int32 arrays, prompt and continuation of each sequence; with `return_dict_in_generate` a
            GenerateOutput of those, and of scores and logits, [B, vocab_size] a step, where asked for.

        Raises:
            ValueError: An empty prompt, an id outside the vocabulary, a prompt that leaves no room for an answer, a
                batch that the key/value cache can't hold, a setting out of range.
        """
        settings = copy.deepcopy(generation_config or GenerationConfig.from_model_config(self.config))
        settings.update(**kwargs)
        check_sampling(settings)
        prompts = _prompts(input_ids, attention_mask, settings.pad_token_id)
        limits = [self._limit(row, prompt, settings) for row, prompt in enumerate(prompts)]
        if self.use_past:
            self._check_cache(limits)
        processors = self.get_logits_processor(settings, max(map(len, prompts)),
                                               logits_processor or LogitsProcessorList())
        uniform = (np.random if seed is None else np.random.RandomState(seed)).random_sample
        was_training = self.training
        self.set_train(False)
        start = time.time()
        out = self._continue(prompts, limits, settings, processors, streamer, uniform)
        generated = sum(map(len, out.sequences)) - sum(map(len, prompts))
        logger.info("%d tokens generated, %.1f tokens/s", generated, generated / (time.time() - start))
        self.set_train(was_training)
        return out if settings.return_dict_in_generate else out.sequences

    def _continue(self, prompts, limits, settings, processors, streamer, uniform):
        """The loop: a step computes the logits of every sequence's last token, and chooses the next."""
        batch = Batch(prompts, limits, self.config)
        logits_of_steps, scores_of_steps = (), ()
        if streamer is not None:
            streamer.put(batch.ids[:, :max(map(len, prompts))])
        logits = self.prefill(batch) if self.use_past else self.whole(batch)
        while True:
            if settings.return_dict_in_generate and settings.output_logits:
                logits_of_steps += (logits.copy(),)
            tokens = self._choose(batch, logits, settings, processors, uniform)
            if settings.return_dict_in_generate and settings.output_scores:
                scores_of_steps += (logits,)
            batch.append(tokens, settings.eos_token_id)
            if streamer is not None:
                streamer.put(tokens if len(tokens) > 1 else tokens[0])
            if batch.finished.all():
                break
            logits = self.decode(batch) if self.use_past else self.whole(batch)
        if streamer is not None:
            streamer.end()
        sequences = [ids[:length] for ids, length in zip(batch.ids, batch.lengths)]
        return GenerateOutput(sequences=sequences, logits=logits_of_steps or None, scores=scores_of_steps or None)

    def _choose(self, batch, logits, settings, processors, uniform):
        """The next token of each sequence; `logits` [B, vocab_size] become the scores that chose it."""
        tokens = []
        for row, is_finished in enumerate(batch.finished):
            if is_finished:
                tokens.append(int(batch.ids[row, batch.lengths[row] - 1]))
                continue
            for processor in processors:
                logits[row] = _process(processor, batch.ids[row:row + 1, :batch.lengths[row]], logits[row:row + 1])
            scores = logits[row]
            tokens.append(sample(scores, settings, uniform()) if settings.do_sample else int(scores.argmax()))
        return tokens

    def prefill(self, batch):
        """Logits [B, vocab_size] of the prompts' last tokens; fills the cache."""
        self._enter("prefill", is_first_iteration=True)
        ids = np.concatenate([ids[:length] for ids, length in zip(batch.ids, batch.lengths)])
        slots = np.concatenate([batch.slots(row, np.arange(length)) for row, length in enumerate(batch.lengths)])
        return self(_int32(ids[None]), batch_valid_length=_int32(batch.lengths),
                    block_tables=_int32(batch.block_tables[:, :batch.blocks()]), slot_mapping=_int32(slots)).asnumpy()

    def decode(self, batch):
        """Logits [B, vocab_size] of the last tokens; adds them to the cache."""
        self._enter("increment", is_first_iteration=False)
        rows = np.arange(len(batch.lengths))
        tables = batch.block_tables[:, :batch.blocks()] if self.kernels.reads_whole_tables else batch.block_tables
        return self(_int32(batch.ids[rows, batch.lengths - 1][:, None]), batch_valid_length=_int32(batch.lengths),
                    block_tables=_int32(tables), slot_mapping=_int32(batch.slots(rows, batch.lengths - 1))).asnumpy()

    def whole(self, batch):
        """Logits [B, vocab_size] of the last tokens, without a cache."""
        width = batch.lengths.max()
        # The id of padding may be outside the vocabulary.
        ids = np.where(np.arange(width) < batch.lengths[:, None], batch.ids[:, :width], 0)
        return self(_int32(ids), batch_valid_length=_int32(batch.lengths),
                    prompt_lengths=_int32(batch.prompt_lengths)).asnumpy()

    def _enter(self, phase, is_first_iteration):
        """Choose the graph of the next call."""
        self.phase = phase
        if self.is_first_iteration != is_first_iteration:
            self.add_flags_custom(is_first_iteration)

    def _limit(self, row, prompt, settings):
        """How many tokens a sequence may have with its answer; ValueError where its prompt can't be answered."""
        wrong = prompt[(prompt < 0) | (prompt >= self.config.vocab_size)]
        if wrong.size:
            raise ValueError(f"prompt {row}: id {wrong[0]} is outside the vocabulary of {self.config.vocab_size}")
        length = len(prompt)
        if length == 0:
            raise ValueError(f"prompt {row} is empty (or nothing but padding, id {settings.pad_token_id})")
        if length >= self.config.seq_length:
            raise ValueError(f"prompt {row} has {length} tokens and the model holds {self.config.seq_length} with "
                             "the answer: shorten it or raise seq_length")
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
        ids (np.ndarray): [B, longest limit] int32; what is not there yet repeats the sequence's first id.
        lengths, prompt_lengths (np.ndarray): [B] int32.
        finished (np.ndarray): [B] bool.
        block_tables (np.ndarray): [B, blocks of seq_length] int32, -1 beyond a sequence's limit.
    """

    def __init__(self, prompts, limits, config):
        self.limits, self.block_size = np.array(limits), config.block_size
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

    def blocks(self):
        """Blocks of the longest sequence."""
        return -(-int(self.lengths.max()) // self.block_size)

    def slots(self, rows, positions):
        """The cache slots of positions of sequences."""
        return self.block_tables[rows, positions // self.block_size] * self.block_size + positions % self.block_size

    def append(self, tokens, eos):
        """Add a token to each unfinished sequence, and finish those that end with it."""
        for row in np.flatnonzero(~self.finished):
            self.ids[row, self.lengths[row]] = tokens[row]
            self.lengths[row] += 1
            self.finished[row] = tokens[row] in eos or self.lengths[row] == self.limits[row]


def _process(processor, ids, logits):
    """A logits processor's answer to ids [1, S] and logits [1, vocab_size], in numpy where it can."""
    if type(processor).process_np is not LogitsProcessor.process_np:
        return processor.process_np(logits, ids)
    return processor(Tensor(ids), Tensor(logits)).asnumpy()


def _prompts(input_ids, attention_mask, pad):
    """The prompts as int64 arrays, without padding."""
    if isinstance(input_ids, Tensor):
        input_ids = input_ids.asnumpy()
    if len(input_ids) == 0 or np.ndim(input_ids[0]) == 0:
        input_ids = [input_ids]
    rows = [np.asarray(row, np.int64) for row in input_ids]
    if attention_mask is None:
        return [row[:int(np.max(np.argwhere(row != pad), initial=-1)) + 1] for row in rows]
    mask = np.atleast_2d(np.asarray(attention_mask)).astype(bool)
    if mask.shape != np.shape(input_ids):
        raise ValueError(f"attention_mask: expected the shape of input_ids {np.shape(input_ids)}, found {mask.shape}")
    return [row[seen] for row, seen in zip(rows, mask)]


def _int32(array):
    return Tensor.from_numpy(np.ascontiguousarray(array, np.int32))
