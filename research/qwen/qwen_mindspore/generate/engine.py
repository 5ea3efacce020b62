"""
The engine: answers many requests at once, over one model and its paged key/value cache.

A request waits until there is a place and blocks for its prompt. Its prompt is computed between two decode steps, in
pieces of a bounded size, without what another request has computed already: blocks are known by their content and kept
until their room is needed. Then it has a row in each decode step, and a block more whenever it has filled its last.
When blocks run out, the youngest request gives its own up and is computed again later.

With a cache of 8 bits, where what one call writes shares a scale, everything is computed again by calls of the same
tokens: prompts in pieces at fixed places, see `piece_size`, answers token by token. Only whole pieces are shared.

    engine = Engine(model)
    engine.add(Request(prompt_ids, GenerationSettings(max_new_tokens=100)))
    while engine.has_work:
        for output in engine.step():
            ...

Source: Yu et al., Orca (OSDI 2022), iteration-level scheduling; Kwon et al., PagedAttention (arXiv:2309.06180)
"""
import itertools
import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np
from mindformers.tools.logger import logger

from qwen_mindspore.common.kinds import read_as
from qwen_mindspore.generate.blocks import BlockPool, call_rows, piece_size
from qwen_mindspore.generate.choice import Choice, logprobs_of
from qwen_mindspore.generate.requests import Output, Request, RunningRequest
from qwen_mindspore.generate.sampling import as_ids, check_prompt
from qwen_mindspore.generate.settings import FROM_1
from qwen_mindspore.model.scoring import Scorer

__all__ = ["Engine", "Output", "Request", "Stats"]


class Stats(NamedTuple):
    """What an engine has to do, has, and has done."""

    running: int  # requests with a place in the batch
    waiting: int  # requests without one
    free_blocks: int  # blocks that no request holds
    shared_blocks: int  # those of them that are kept for requests that begin alike
    computed_tokens: int  # of prompts, so far
    reused_tokens: int  # of prompts, that were there already
    evictions: int  # requests that had to give their blocks up


class Engine:
    """
    Continues many prompts at once.

    `step` is one bounded piece of work. It belongs to one thread at a time, while `add`, `cancel`, `has_work` and
    `stats` may be called from any thread, also during a step. Engines of several models may step in a thread each; one
    of them computes at a time, see `CausalLM.__call__`.

    The engine fills the model's key/value cache. Where something else has done so since the last step, as the model's
    own `generate` or another engine does, it computes what it needs anew: answers stay right, but take longer.

    Args:
        model (QwenForCausalLM): With `use_past`.
        max_batch (int): The most requests that are decoded at once. Default: `config.batch_size`.
        prefill_tokens (int): The most tokens of prompts that one step computes; with an 8-bit cache one piece at least.

    Raises:
        ValueError: A model without a cache, or a number below 1.
    """

    def __init__(self, model, max_batch=None, prefill_tokens=512):
        config = model.config
        if not model.use_past:
            raise ValueError("the engine needs a model with a key/value cache: set use_past to True")
        for name, value in (("max_batch", config.batch_size if max_batch is None else max_batch),
                            ("prefill_tokens", prefill_tokens)):
            setattr(self, name, read_as(FROM_1, name, value))
        model.set_train(False)
        self.model, self.config, self.block_size = model, config, config.block_size
        self.pool, self.piece = BlockPool(config.cache_blocks), piece_size(config)
        thresholds = model.transformer.tables.thresholds
        self.thresholds = np.zeros(0, np.int32) if thresholds is None else thresholds.asnumpy()
        self.lock = threading.Lock()  # of what add and cancel share with step
        self.sequences, self.cancelled = {}, []  # id -> what has not ended yet; those of them that are to end
        self.waiting, self.prefilling, self.decoding = deque(), [], []
        self.arrivals, self.numbers = itertools.count(), itertools.count()
        self.was_prefill = False  # the last step
        self.scorer = None
        self.computed_tokens = self.reused_tokens = self.evictions = 0
        # By row of the decoding batch: the last token, which is not computed yet; the tokens with it; the blocks.
        self.tokens = np.zeros(self.max_batch, np.int32)
        self.lengths = np.zeros(self.max_batch, np.int32)
        self.tables = np.full((self.max_batch, config.blocks_per_sequence), -1, np.int32)

    def add(self, request):
        """
        Queue a request; computes nothing.

        Returns:
            The request's id.

        Raises:
            ValueError: An id that is in use, an empty prompt, one with ids outside the vocabulary, or one that leaves
                no room for an answer.
        """
        prompt = as_ids(request.prompt, "the prompt")
        capacity = min(self.config.seq_length, self.pool.count * self.block_size)
        check_prompt(prompt, self.config.vocab_size, capacity, "the prompt")
        limit = min(len(prompt) + request.settings.max_new_tokens, capacity)
        factor = int(np.searchsorted(self.thresholds, len(prompt)))
        with self.lock:
            id = request.id
            if id is None:
                id = next(number for number in self.numbers if number not in self.sequences)
            elif id in self.sequences:
                raise ValueError(f"id {id!r}: a request of that id has not ended yet")
            choice = Choice(request.settings, self.config.vocab_size, request.grammar, limit - len(prompt))
            sequence = RunningRequest(id, request.settings, prompt.astype(np.int32), limit, factor, next(self.arrivals),
                                 self.piece or self.block_size, choice)
            self.sequences[id] = sequence
            self.waiting.append(sequence)
        return id

    def cancel(self, id):
        """End a request; the next step says so. One that is not there, or has ended, is no error."""
        with self.lock:
            if id in self.sequences:
                self.cancelled.append(self.sequences[id])

    @property
    def has_work(self):
        """Whether there are requests that have not ended."""
        return bool(self.sequences)

    def stats(self):
        """Stats."""
        return Stats(len(self.prefilling) + len(self.decoding), len(self.waiting), self.pool.free, len(self.pool.kept),
                     self.computed_tokens, self.reused_tokens, self.evictions)

    def step(self):
        """
        Compute prompts of newcomers, or the next token of every row; in turns where there is both to do.

        Returns:
            list[Output], for each request at most one; also of requests cancelled since the last step. Requests whose
            computation failed have ended with "error"; the others go on.
        """
        with self.lock:
            outputs = self._end_cancelled()
            self._own_cache()
            work = [] if self.was_prefill and self.decoding else self._plan_prefill()
            self.was_prefill = bool(work)
            work = work or self._plan_decode()
        if not work:
            return outputs
        try:
            logits = self._prefill(work) if self.was_prefill else self._decode()
        except BaseException as error:
            # What the cache holds now is not known: what goes on begins anew.
            self.model.cache_owner = None
            if not isinstance(error, Exception):
                raise
            logger.error("%d requests failed: %s", len(work), error)
            with self.lock:
                return outputs + [self._end(sequence, error) for sequence, _ in work]
        with self.lock:
            for (sequence, count), row in zip(work, logits):
                sequence.computed += count
                if sequence.computed == sequence.length:
                    outputs.append(self._advance(sequence, row))
                elif sequence.computed >= self._prefill_end(sequence):
                    self._decode_next(sequence)  # a token of the answer that is there already
        return outputs

    # What to compute

    def _end_cancelled(self):
        # One that is gone has ended by itself meanwhile.
        outputs = [self._end(sequence) for sequence in self.cancelled if self.sequences.get(sequence.id) is sequence]
        self.cancelled = []
        return outputs

    def _own_cache(self):
        """Begin anew where something else has written to the cache."""
        if self.model.cache_owner is self:
            return
        self.model.cache_owner = self
        self.pool.withdraw_all()
        for sequence in self._by_age():
            self._put_back(sequence)

    def _plan_prefill(self):
        """[(sequence, how many of its tokens)]: those of prompts that are begun, then of newcomers."""
        work, room = [], self.prefill_tokens
        for sequence in self.prefilling:
            room -= self._schedule(sequence, room, work)
        while room > 0 and self.waiting and len(self.prefilling) + len(self.decoding) < self.max_batch:
            sequence = self.waiting[0]
            if not self._take_blocks(sequence):
                break
            self.prefilling.append(self.waiting.popleft())
            count = self._schedule(sequence, room, work)
            if count == 0:
                break
            room -= count
        return work

    def _prefill_end(self, sequence):
        """Where prefill ends and decoding begins; with an 8-bit cache that is where it first did."""
        return sequence.prompt_length if self.piece else sequence.length

    def _plan_decode(self):
        """[(sequence, 1)] of every row, once those that have filled their last block have another."""
        begins = (self.lengths[:len(self.decoding)] - 1) % self.block_size == 0
        for sequence in sorted((self.decoding[row] for row in np.flatnonzero(begins)), key=lambda s: s.arrival):
            self._grow(sequence)
        work = []
        for sequence in self.decoding:
            work.append((sequence, 1))
            if not self.piece:
                self._publish(sequence, 1)
        return work

    def _schedule(self, sequence, room, work):
        """Add up to `room` tokens of a prompt to the work, with an 8-bit cache a whole piece or none; how many."""
        count = self._prefill_end(sequence) - sequence.computed
        if work and (sequence.is_scored or work[0][0].is_scored):  # by a call of its own
            return 0
        if self.piece:
            count = min(count, self.piece - sequence.computed % self.piece)
            fits = not work or (count <= room and (count == 1) == (work[0][1] == 1))  # see `call_rows`
            count = count if fits else 0
        else:
            count = min(count, room)
        if count > 0:
            work.append((sequence, count))
            self._publish(sequence, count)
        return count

    def _publish(self, sequence, count):
        """Let others share the units that the next `count` tokens complete."""
        # Newcomers of the same prefill may do so: a layer writes all keys, then reads them.
        unit, size = sequence.unit, sequence.unit // self.block_size
        first, last = sequence.computed // unit, (sequence.computed + count) // unit
        for index in range(first * size, last * size):
            self.pool.publish(sequence.blocks[index], sequence.digest(index, self.block_size))

    def _take_blocks(self, sequence):
        """Give a newcomer its blocks, those published that it begins with among them; False if there are too few."""
        count, shared = -(-sequence.length // self.block_size), self._published(sequence)
        self.pool.share(shared)
        # Those that are there already will want a block more each before long.
        if self.pool.free < count - len(shared) + len(self.prefilling) + len(self.decoding):
            self.pool.release(shared)
            return False
        sequence.blocks = shared + [self.pool.take() for _ in range(count - len(shared))]
        sequence.computed = len(shared) * self.block_size
        self.reused_tokens += sequence.computed
        if sequence.cached is None:
            sequence.cached, sequence.started = sequence.computed, time.monotonic()
        return True

    def _published(self, sequence):
        """The blocks of the units that a sequence begins with, as far as they are published."""
        blocks, size = [], sequence.unit // self.block_size
        if sequence.is_scored:
            return blocks
        for unit in range((self._prefill_end(sequence) - 1) // sequence.unit):  # the last token must be computed
            found = [self.pool.published.get(sequence.digest(unit * size + i, self.block_size)) for i in range(size)]
            if None in found:
                break
            blocks += found
        return blocks

    def _grow(self, sequence):
        """Another block for a row, unless it has one or had to give its own up; the youngest give theirs up for it."""
        index = (sequence.length - 1) // self.block_size
        while sequence.row is not None and index == len(sequence.blocks):
            if self.pool.free:
                sequence.blocks.append(self.pool.take())
                self.tables[sequence.row, index] = sequence.blocks[-1]
            else:
                self._put_back(self._by_age()[0])
                self.evictions += 1

    def _by_age(self):
        """All that have blocks, the youngest first."""
        return sorted(self.prefilling + self.decoding, key=lambda s: -s.arrival)

    # Computing

    def _prefill(self, work):
        """Logits [B, vocab_size] behind the tokens of the work, and of rows that fill it up."""
        self.computed_tokens += sum(count for _, count in work)
        if work[0][0].is_scored:
            return self._score(*work[0])
        if self.piece:
            work = [work[row] for row in call_rows([count for _, count in work])]
        sequences, queries = zip(*work)
        ids = np.concatenate([s.ids[s.computed:s.computed + count] for s, count in work])
        tables = np.full((len(work), self.tables.shape[1]), -1, np.int32)
        for row, sequence in enumerate(sequences):
            tables[row, :len(sequence.blocks)] = sequence.blocks
        return self.model.prefill(ids, np.array(queries), np.array([s.computed + count for s, count in work]),
                                  np.array([s.prompt_length for s in sequences]), tables)

    def _score(self, sequence, count):
        """Logits [1, vocab_size] behind the next tokens of a prompt, all of whose log probabilities are wanted."""
        if self.scorer is None or self.scorer.parts != self.model.parts:
            self.scorer = Scorer(self.model)
        start, end = sequence.computed, sequence.computed + count
        rows = len(call_rows([count])) if self.piece else 1
        tables = np.full((rows, self.tables.shape[1]), -1, np.int32)
        tables[:, :len(sequence.blocks)] = sequence.blocks
        hidden = self.scorer.prefill(np.tile(sequence.ids[start:end], rows), *(
            np.full(rows, number) for number in (count, end, sequence.prompt_length)), tables)[:count]
        targets = sequence.ids[start + 1:min(end + 1, sequence.prompt_length)]
        for some, logits in self.scorer.chunks(hidden[:len(targets)]):
            sequence.scores += logprobs_of(logits, targets[some], sequence.settings.prompt_logprobs)
        return self.scorer.logits(hidden[-1:])

    def _decode(self):
        """Logits [B, vocab_size] behind the last token of every row, and of rows that fill the batch up."""
        count = len(self.decoding)
        rows = np.arange(max(self._batch_size(count), len(call_rows([1] * count)) if self.piece else 0))
        rows[count:] = 0  # the first row once more, which writes the same to the same slot
        return self.model.decode(self.tokens[rows], self.lengths[rows], self.tables[rows])

    def _batch_size(self, count):
        """Of the graph that decodes so many rows: where each size has a graph of its own there are but a few sizes."""
        if self.model.kernels.reads_whole_tables:
            return count
        return min(1 << (count - 1).bit_length(), self.max_batch)

    # What comes of it

    def _advance(self, sequence, logits):
        """Choose the next token of a sequence that is computed; the Output."""
        try:
            output = sequence.append(*sequence.choose(logits))
        except Exception as error:  # of this request alone, its grammar's among them: others go on
            return self._end(sequence, error)
        if output.finish_reason:
            self._leave(sequence)
            del self.sequences[sequence.id]
            return output
        self._decode_next(sequence)
        return output

    def _decode_next(self, sequence):
        """Have the next step decode a sequence's first token that is not computed, in its row or in a new one."""
        if sequence.row is None:
            self.prefilling.remove(sequence)
            sequence.row = len(self.decoding)
            self.decoding.append(sequence)
            self.tables[sequence.row, :len(sequence.blocks)] = sequence.blocks
        self.tokens[sequence.row] = sequence.ids[sequence.computed]
        self.lengths[sequence.row] = sequence.computed + 1

    def _end(self, sequence, error=None):
        """End a sequence before its time; the Output."""
        if sequence.blocks:
            self._leave(sequence)
        else:
            self.waiting.remove(sequence)
        del self.sequences[sequence.id]
        return Output(sequence.id, None, "error" if error else "cancelled", error=error,
                      cached_tokens=sequence.cached or 0, started=sequence.started)

    def _put_back(self, sequence):
        """Take a sequence's blocks; it waits, before all younger ones, and is computed again."""
        self._leave(sequence)
        self.waiting.appendleft(sequence)

    def _leave(self, sequence):
        """Take a sequence's blocks and its place."""
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.computed = [], 0
        if sequence.is_scored:
            sequence.scores = [None]
        if sequence.row is None:
            self.prefilling.remove(sequence)
            return
        row, last = sequence.row, self.decoding.pop()
        if last is not sequence:  # the last row moves up
            self.decoding[row], last.row = last, row
            for rows in (self.tokens, self.lengths, self.tables):
                rows[row] = rows[len(self.decoding)]
        sequence.row = None
