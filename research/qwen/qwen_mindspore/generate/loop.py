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

from qwen_mindspore.generate.settings import check_sampling

__all__ = ["QwenGeneration", "check_prompt", "penalise", "sample"]

NEAR = 1e-3  # of the largest weight: where the weights that hold top_p are looked for first
GROUP = 64  # of logits, one of whose maximum tells whether top_k has to look at them


def sample(logits, settings, uniform):
    """
    Draw a token: softmax of logits / temperature, cut to the `top_k` likeliest tokens, then to the fewest likeliest
    ones that hold `top_p` of what is left.

    Args:
        logits (np.ndarray): [vocab_size] float32; altered.
        settings (GenerationSettings or GenerationConfig): `temperature`, `top_k` (0 or None: off), `top_p` (1 or None:
            off).
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
        kept = _largest(weights, top_k)
        return _draw(kept, weights[kept], top_p, uniform)
    if not np.isfinite(weights[-1]):
        raise FloatingPointError("the logits are not finite")
    return _draw(None, weights, top_p, uniform)


def _largest(x, count):
    """The places of the `count` largest of x, in any order."""
    # At least so many are not below the least of the `count` largest maxima of groups: few others are either.
    groups = x[:len(x) // GROUP * GROUP].reshape(GROUP, -1).max(0)
    places = np.arange(len(x))
    if count < len(groups):
        places = np.flatnonzero(x >= np.partition(groups, -count)[-count])
    return places[np.argpartition(x[places], -count)[-count:]]


def _nucleus(weights, target):
    """The places of the fewest largest weights, float32, whose sum is at least `target`; of equal ones the first."""
    # Mostly, few weights are near the largest, and hold enough.
    places = np.flatnonzero(weights >= NEAR * weights.max())
    some = weights[places]
    if some.sum(dtype=np.float64) < target:
        places, some = np.arange(len(weights)), weights
    # Sorting takes longest. The first bits of a weight tell its class, of all that are within 3 %: only the class in
    # which the sum is reached is sorted.
    classes = some.view(np.int32) >> 18
    sums = np.cumsum(np.bincount(classes, some)[::-1])
    reached = min(int(np.searchsorted(sums, target)), len(sums) - 1)
    last = len(sums) - 1 - reached
    edge = np.flatnonzero(classes == last)
    edge = edge[np.argsort(-some[edge], kind="stable")]
    missing = target - (sums[reached - 1] if reached else 0.0)
    count = int(np.searchsorted(np.cumsum(some[edge], dtype=np.float64), missing)) + 1
    return places[np.concatenate((np.flatnonzero(classes > last), edge[:count]))]


def _draw(tokens, weights, top_p, uniform):
    """One of `tokens` (None: their numbers) in proportion to `weights`, cut to the fewest that hold top_p of them."""
    if top_p < 1.0:
        kept = _nucleus(weights, top_p * weights.sum(dtype=np.float64))
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    sums = np.cumsum(weights, dtype=np.float64)
    place = min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), len(sums) - 1)
    return place if tokens is None else int(tokens[place])


def penalise(logits, ids, penalty):
    """
    Make tokens that are there already less likely, in place: logits [vocab_size], ids [S].

    Source: Keskar et al., arXiv:1909.05858
    """
    seen = logits[ids]
    logits[ids] = np.where(seen < 0, seen * penalty, seen / penalty)


def check_prompt(prompt, vocabulary, room, name):
    """ValueError for an array of ids that is empty, has other ids than the vocabulary, or leaves no room to answer."""
    length = len(prompt)
    if length == 0:
        raise ValueError(f"{name} is empty")
    wrong = prompt[(prompt < 0) | (prompt >= vocabulary)]
    if wrong.size:
        raise ValueError(f"{name}: id {wrong[0]} is outside the vocabulary of {vocabulary}")
    if length >= room:
        raise ValueError(f"{name} has {length} tokens and the model holds {room} with the answer: shorten it, or raise "
                         "seq_length, and num_blocks where it is set")


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
        self.cache_owner = batch
        logits = self._logits_of(batch, is_prompt=True)
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
            logits = self._logits_of(batch, is_prompt=False)
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

    def prefill(self, ids, queries, lengths, prompt_lengths, block_tables):
        """
        Add tokens to the cache, and compute what follows them.

        Args:
            ids (np.ndarray): [T], the tokens of each sequence, packed one behind the other.
            queries (np.ndarray): [B], how many of them are each sequence's.
            lengths (np.ndarray): [B], tokens that each sequence has then; what stands before its queries is cached.
            prompt_lengths (np.ndarray): [B], what dynamic NTK goes by.
            block_tables (np.ndarray): [B, blocks of seq_length], see `kernels`.

        Returns:
            np.ndarray, logits [B, vocab_size] of each sequence's last token.
        """
        self._enter("prefill", is_first_iteration=True)
        rows = np.repeat(np.arange(len(queries)), queries)
        positions = np.arange(len(ids)) + np.repeat(lengths - np.cumsum(queries), queries)
        slots = self._slots(block_tables, rows, positions)
        is_whole = self.kernels.faster_whole_prefill and np.array_equal(queries, lengths)
        return self(_int32(ids[None]), batch_valid_length=_int32(lengths),
                    block_tables=_int32(self._narrowed(block_tables, lengths)), slot_mapping=_int32(slots),
                    prompt_lengths=_int32(prompt_lengths),
                    q_seq_lens=None if is_whole else _int32(queries)).asnumpy()

    def decode(self, ids, lengths, block_tables):
        """
        Add one token to each sequence in the cache, and compute what follows it.

        Args:
            ids (np.ndarray): [B], the tokens.
            lengths (np.ndarray): [B], tokens that each sequence has then.
            block_tables (np.ndarray): [B, blocks of seq_length].

        Returns:
            np.ndarray, logits [B, vocab_size].
        """
        self._enter("increment", is_first_iteration=False)
        slots = self._slots(block_tables, np.arange(len(ids)), lengths - 1)
        tables = self._narrowed(block_tables, lengths) if self.kernels.reads_whole_tables else block_tables
        return self(_int32(ids[:, None]), batch_valid_length=_int32(lengths), block_tables=_int32(tables),
                    slot_mapping=_int32(slots)).asnumpy()

    def _logits_of(self, batch, is_prompt):
        """Logits [B, vocab_size] of the last tokens."""
        if not self.use_past:
            return self._whole(batch)
        lengths = batch.lengths
        if is_prompt:
            ids = np.concatenate([ids[:length] for ids, length in zip(batch.ids, lengths)])
            return self.prefill(ids, lengths, lengths, lengths, batch.block_tables)
        return self.decode(batch.ids[np.arange(len(lengths)), lengths - 1], lengths, batch.block_tables)

    def _whole(self, batch):
        """The same without a cache."""
        width = batch.lengths.max()
        # The id of padding may be outside the vocabulary.
        ids = np.where(np.arange(width) < batch.lengths[:, None], batch.ids[:, :width], 0)
        return self(_int32(ids), batch_valid_length=_int32(batch.lengths),
                    prompt_lengths=_int32(batch.prompt_lengths)).asnumpy()

    def _slots(self, block_tables, rows, positions):
        """The cache slots of positions of sequences."""
        size = self.config.block_size
        return block_tables[rows, positions // size] * size + positions % size

    def _narrowed(self, block_tables, lengths):
        """The tables, as wide as the longest sequence needs."""
        return block_tables[:, :-(-int(lengths.max()) // self.config.block_size)]

    def _enter(self, phase, is_first_iteration):
        """Choose the graph of the next call."""
        self.phase = phase
        if self.is_first_iteration != is_first_iteration:
            self.add_flags_custom(is_first_iteration)

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
        ids (np.ndarray): [B, longest limit] int32; what is not there yet repeats the sequence's first id.
        lengths, prompt_lengths (np.ndarray): [B] int32.
        finished (np.ndarray): [B] bool.
        block_tables (np.ndarray): [B, blocks of seq_length] int32, -1 beyond a sequence's limit.
    """

    def __init__(self, prompts, limits, config):
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
