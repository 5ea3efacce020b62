"""One contestant of benchmark.py, in a process of its own: takes its job as JSON, prints its figures as lines of JSON.

A contestant's constructor imports what it needs, `load` gets it ready, `generate(prompts, new_tokens, on_step)` calls
`on_step` with the next greedy id of each sequence, `new_tokens` times, and `sizes` tells what a step reads. A peer may
run in an environment that has nothing else of this project.
"""
import collections
import contextlib
import importlib.metadata
import itertools
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

from qwen_mindspore.common.cpus import usable_cpus
from qwen_mindspore.families import QWEN, family_of

WARM_UP_TOKENS = 3
NOT_FINITE = 3  # the exit code where figures would be of no model that works; the last line says what is wrong


class Ours:
    """This project's model through MindFormers' `generate`, with the kernel set that QWEN_KERNELS names."""

    packages = ("mindspore", "mindformers")

    def __init__(self):
        import qwen_mindspore.generate.loop  # noqa: F401

    def load(self, job):
        """Build the model, with a cache that just holds the longest job."""
        import mindspore as ms

        from qwen_mindspore.generate.loop import QwenForCausalLM
        from qwen_mindspore.model.config import QwenConfig

        ms.set_context(mode=ms.GRAPH_MODE)
        sequences = [(1, tokens + 1) for tokens in job["prompts"]]
        sequences += [(batch, job["context"] + job["new_tokens"]) for batch in job["batches"]]
        settings = {"use_past": True, "checkpoint_name_or_path": job["checkpoint"], "batch_size": max(job["batches"]),
                    "seq_length": max(tokens for _, tokens in sequences)}
        if job["model_config"]:
            config = QwenConfig(**{**job["model_config"], **settings})
        else:
            config = QwenConfig.from_hf_config(job["hf"], **settings)
        config.num_blocks = max(batch * -(-tokens // config.block_size) for batch, tokens in sequences)
        self.config, self.model = config, QwenForCausalLM(config)
        self.model.set_train(False)
        self.vocab_size = config.vocab_size

    def generate(self, prompts, new_tokens, on_step):
        """As a user would, but for the end of text, which does not end it."""
        self.model.generate(prompts, max_new_tokens=new_tokens, do_sample=False, eos_token_id=[],
                            streamer=Streamer(on_step))

    def sizes(self):
        """Beside the bytes, what the operations of a step follow from."""
        parameters = {parameter.name: parameter for parameter in self.model.get_parameters()}
        caches = [parameters.pop(name) for name in list(parameters) if name.endswith("_cache")]
        read = {name: parameter.nbytes for name, parameter in parameters.items()
                if self.config.tie_word_embeddings or not name.startswith(QWEN.name("embedding", "ms") + ".")}
        # The caches of the layers, which have a place for every token.
        keys_and_values = [cache.nbytes for cache in caches if not cache.name.endswith("ntk_cache")]
        return {
            "weight_bytes": sum(parameter.nbytes for parameter in parameters.values()),
            "step_bytes": sum(read.values()),
            "cache_bytes": sum(cache.nbytes for cache in caches),
            "cache_bytes_per_token": sum(keys_and_values) // (self.config.cache_blocks * self.config.block_size),
            **step_sizes(self.config),
        }


def step_sizes(config):
    """
    How many parameters a decode step multiplies by, of them the head's, and how wide its attention is, all layers
    together: by the shapes of the model, be it quantized or not.

    Args:
        config (QwenConfig): The model's.
    """
    family = family_of({"model_type": config.model_type})
    hf = {family.keys.head_size: config.kv_channels, **{key: getattr(config, key) for key in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "tie_word_embeddings")}}
    sizes = family.sizes(hf)
    unread = () if sizes.tied else ("embedding",)
    return {"step_parameters": sum(math.prod(tensor.shape) for tensor in family.tensors(hf)
                                   if tensor.role not in unread),
            "head_parameters": sizes.vocab * sizes.hidden,
            "attention_width": sizes.layers * sizes.query}


class Streamer:
    """What MindFormers' `generate` hands the prompts to, and then the ids of each step."""

    def __init__(self, on_step):
        self.on_step = on_step
        self.has_prompts = False

    def put(self, ids):
        """An array of prompts; then one id, or a list of them."""
        if self.has_prompts:
            self.on_step(np.ravel(ids).tolist())
        self.has_prompts = True

    def end(self):
        """Nothing to do."""


class Torch:
    """Plain torch, see torch_qwen.py."""

    packages = ("torch",)

    def __init__(self):
        import torch

        from qwen_mindspore.model import torch_qwen

        torch.set_num_threads(usable_cpus())
        self.torch, self.model_class = torch, torch_qwen.TorchQwen

    def load(self, job):
        """From the Hugging Face folder, or random weights."""
        if job["hf"]:
            self.model = self.model_class.from_folder(job["hf"])
        else:
            from qwen_mindspore.checkpoint.names import hf_shapes
            config = {"model_type": QWEN.model_type, **job["model_config"]}
            weights = {name: self.torch.randn(shape) * 0.02 for name, shape in hf_shapes(config).items()}
            self.model = self.model_class(config, weights)
        self.vocab_size = len(self.model.head)

    def generate(self, prompts, new_tokens, on_step):
        """Greedy."""
        for ids in self.model.greedy(prompts, new_tokens):
            on_step(ids)

    def sizes(self):
        """The embedding is not read, save where it is the head."""
        weights, sizes = self.model.weights, self.model.sizes
        total = sum(weight.nbytes for weight in weights.values())
        unread = 0 if sizes.tied else weights[self.model.name("embedding") + ".weight"].nbytes
        return {"weight_bytes": total, "step_bytes": total - unread,
                "cache_bytes_per_token": 2 * sizes.layers * sizes.kv * 4}


class Transformers:
    """
    The `generate` of transformers with its Qwen2, which computes what Qwen does. (The released code of Qwen itself is
    no package: it comes with the weights.)
    """

    packages = ("torch", "transformers")

    def __init__(self):
        import torch
        import transformers

        torch.set_num_threads(usable_cpus())
        self.torch, self.api = torch, transformers

    def load(self, job):
        """From the Hugging Face folder, or random weights; q, k and v apart."""
        from qwen_mindspore.model import torch_qwen

        if job["hf"]:
            config = json.loads(Path(job["hf"], "config.json").read_text(encoding="utf-8"))
            weights = torch_qwen.TorchQwen.from_folder(job["hf"]).weights
        else:
            config, weights = {"model_type": QWEN.model_type, **job["model_config"]}, {}
        family = family_of(config)
        self.sizes_of_model = sizes = family.sizes(config)
        self.config = self.api.Qwen2Config(
            vocab_size=sizes.vocab, hidden_size=sizes.hidden, intermediate_size=sizes.ffn,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
            head_dim=sizes.head_size, rms_norm_eps=config[family.keys.epsilon], rope_theta=config[family.keys.theta],
            tie_word_embeddings=sizes.tied, max_position_embeddings=32768)
        self.model = self.api.Qwen2ForCausalLM(self.config).eval()
        if weights:
            self.model.load_state_dict(qwen2_weights(config, weights), strict=True)
        self.vocab_size = sizes.vocab

    def generate(self, prompts, new_tokens, on_step):
        """Greedy, whatever the token that ends a text."""
        settings = self.api.GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=None,
                                             pad_token_id=0)
        ids = self.torch.tensor(prompts)
        self.model.generate(ids, attention_mask=self.torch.ones_like(ids), generation_config=settings,
                            streamer=Streamer(on_step))

    def sizes(self):
        """The embedding is not read, save where it is the head."""
        total = sum(weight.nbytes for weight in self.model.parameters())
        unread = 0 if self.config.tie_word_embeddings else self.model.model.embed_tokens.weight.nbytes
        return {"weight_bytes": total, "step_bytes": total - unread,
                "cache_bytes_per_token": 2 * self.sizes_of_model.layers * self.sizes_of_model.kv * 4}


def qwen2_weights(config, weights):
    """
    A model's weights by the names of transformers' Qwen2.

    Args:
        config (dict): Its Hugging Face config.json.
        weights (dict): Hugging Face name -> tensor.
    """
    renamed, rows = {}, collections.Counter()
    for tensor in family_of(config).tensors(config):
        name, first = tensor.names["hf"], rows[tensor.names["hf"]]
        rows[name] += tensor.shape[0]
        renamed[tensor.names["qwen2"]] = weights[name][first:rows[name]]
    # Where the two are tied, its state dict has the embedding under both names.
    embedding, head = (f"{QWEN.name(role, 'qwen2')}.weight" for role in ("embedding", "head"))
    return {head: renamed[embedding], **renamed}


class LlamaCpp:
    """llama.cpp through llama-cpp-python's low-level interface, with its own defaults: a float16 cache, say."""

    packages = ("llama-cpp-python",)

    def __init__(self):
        import llama_cpp

        self.api = llama_cpp
        self.context, self.context_size = None, None

    def load(self, job):
        """From the GGUF that benchmark.py wrote."""
        self.job = job
        self.model = self.api.llama_model_load_from_file(job["gguf"].encode(), self.api.llama_model_default_params())
        self.vocab_size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def generate(self, prompts, new_tokens, on_step):
        """All prompts in one call, then one token of each sequence at a time."""
        self._make_context(len(prompts), len(prompts[0]) + new_tokens)
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)
        ids = self._step(prompts, 0)
        on_step(ids)
        for position in range(len(prompts[0]), len(prompts[0]) + new_tokens - 1):
            ids = self._step([[token] for token in ids], position)
            on_step(ids)

    def sizes(self):
        """Its cache is float16."""
        width = self.api.llama_model_n_layer(self.model) * self.api.llama_model_n_embd(self.model)
        return {"weight_bytes": self.job["gguf_bytes"], "step_bytes": self.job["gguf_step_bytes"],
                "cache_bytes_per_token": 2 * width * 2}

    def _make_context(self, batch, tokens):
        """One that fits, unless it is there already: a larger one would make each step slower."""
        cells = -(-tokens // 256) * 256
        if self.context_size == (batch, cells):
            return
        if self.context:
            self.api.llama_free(self.context)
        params = self.api.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * cells, batch
        params.n_batch = max(params.n_batch, batch * cells)
        params.n_threads = params.n_threads_batch = usable_cpus()
        self.context, self.context_size = self.api.llama_init_from_model(self.model, params), (batch, cells)

    def _step(self, tokens, first):
        """The next id of each sequence, whose `tokens` stand from position `first` on."""
        batch = self.api.llama_batch_init(sum(map(len, tokens)), 0, 1)
        last = []
        for sequence, row in enumerate(tokens):
            for position, token in enumerate(row, first):
                i = batch.n_tokens
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 0
                batch.seq_id[i][0] = sequence
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
            batch.logits[last[-1]] = 1
        if self.api.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        ids = [self._argmax(self.api.llama_get_logits_ith(self.context, i)) for i in last]
        self.api.llama_batch_free(batch)
        return ids

    def _argmax(self, logits):
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())


CONTESTANTS = {"ours": Ours, "torch": Torch, "transformers": Transformers, "llama-cpp": LlamaCpp}


def run(job):
    """Measure one contestant in one round.

    Args:
        job (dict): see `plan` in benchmark.py.

    Yields:
        dicts with figures as they come, so that a process which runs out of memory loses no other. `seconds_to`: from
        the start of the process to each stage of its own start. `memory_bytes`: resident after the imports and after
        two tokens, and the peaks until then and until now. `decode` {sequences: seconds of a step}, `prefill`
        {tokens: seconds}, `tokens`: those of the first sequence. And `sizes`, `versions`.
    """
    seconds, memory = {}, {}

    def mark(stage):
        seconds[stage], memory[stage] = time.time() - job["started"], _memory()

    contestant = CONTESTANTS[job["kind"]]()
    mark("import")
    contestant.load(job)
    mark("load")
    stages = iter(("first_token", "second_token"))
    contestant.generate(_prompts(contestant, 1, job["context"]), 2, lambda ids: mark(next(stages)))
    resident, peak = memory["second_token"]
    yield {"seconds_to": seconds, "sizes": contestant.sizes(),
           "memory_bytes": {"import": memory["import"][0], "loaded": resident, "load_peak": peak, "peak": peak},
           "versions": {name: importlib.metadata.version(name) for name in contestant.packages}}
    for batch in job["batches"]:
        prompts = _prompts(contestant, batch, job["context"])
        _timed(contestant, prompts, WARM_UP_TOKENS)
        steps, ids = _timed(contestant, prompts, job["new_tokens"])
        yield {"decode": {batch: sum(steps[1:]) / len(steps[1:])}, "memory_bytes": {"peak": _memory()[1]}}
        if batch == job["batches"][0]:
            yield {"tokens": [step[0] for step in ids]}
    for length in sorted(set(job["prompts"]) - set(job["given_up"])):
        prompts = _prompts(contestant, 1, length)
        _timed(contestant, prompts, 1)
        yield {"prefill": {length: _timed(contestant, prompts, 1)[0][0]}, "memory_bytes": {"peak": _memory()[1]}}


def _prompts(contestant, batch, length):
    """Always the same; the ids of control tokens, at the end of a Qwen's vocabulary, do not occur."""
    choice = random.Random(batch * 1_000_003 + length)
    return [[choice.randrange(contestant.vocab_size * 9 // 10) for _ in range(length)] for _ in range(batch)]


def _timed(contestant, prompts, new_tokens):
    """Seconds [new_tokens] that each step took, and its ids [new_tokens][B]."""
    times, ids = [time.perf_counter()], []

    def on_step(step):
        times.append(time.perf_counter())
        ids.append(step)

    contestant.generate(prompts, new_tokens, on_step)
    return [end - start for start, end in itertools.pairwise(times)], ids


def _memory():
    """(bytes resident now, the most until now). Not from getrusage, whose peak a process inherits."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))


def buildable_kernels(names):
    """Those of the kernel sets named, or else of all, that this machine's device runs and that can be built here."""
    from qwen_mindspore.kernels import build_kernels, runnable_kernels
    from qwen_mindspore.model.config import QwenConfig

    buildable = []
    for name in runnable_kernels():
        os.environ["QWEN_KERNELS"] = name
        with contextlib.suppress(ValueError):
            if not names or name in names:
                build_kernels(QwenConfig())
                buildable.append(name)
    return buildable


def main():
    # Frameworks print to standard output too: only the figures are to stand there.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Where the memory does not suffice, this process is to be ended and no other.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    job = json.loads(sys.argv[1])
    try:
        for figures in run(job) if "kind" in job else [{"kernels": buildable_kernels(job["kernels"])}]:
            print(json.dumps(figures), file=out, flush=True)
    except ArithmeticError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_FINITE)


if __name__ == "__main__":
    main()
