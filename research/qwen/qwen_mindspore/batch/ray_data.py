"""Batch generation on a Ray cluster: Ray Data carries rows to actors with a model each, and answers back."""
import os
import queue
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qwen_mindspore.batch.assemble import build_worker
from qwen_mindspore.batch.records import Record, read_records
from qwen_mindspore.batch.worker import Result
from qwen_mindspore.common.cluster import connect, environment_of, resources_of
from qwen_mindspore.common.json_text import DEEPEST, dump_json, parse_exact_json
from qwen_mindspore.common.progress import say
from qwen_mindspore.generate.build import load_config

__all__ = ["answer_on_ray"]

GROUPS_AT_ONCE = 3  # groups of rows that an actor has: while the last rows of one finish, those of the next are at work
WRAPPED = DEEPEST + 10  # how deep rows and answers are nested between the stages
READ_AHEAD = 2**24  # bytes of rows and answers between the stages


def answer_on_ray(args, config, format, journal):
    """
    Answer the rows of a file on a Ray cluster. The file is read on this machine; the project, its environment, the YAML
    and the checkpoint must be at the same place on every machine.

    Args:
        args (argparse.Namespace): The command line of batch_generate.
        config (MindFormerConfig): Says the device.
        format (str): The file's.
        journal (Journal): Its rows are left out.

    Yields:
        (list[Result], int): rows that have finished, in any order, and how many tokens were generated for them.

    Raises:
        ValueError: Ray is not installed or not reached; an actor or the reading failed.
    """
    ray = connect(args.ray, "data", verbose=args.verbose)
    from ray.data import ActorPoolStrategy, DataContext, from_items
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Ray gathers rows in blocks of megabytes; here a block is one group of rows, or one answer.
    context.target_min_block_size = context.target_max_block_size = 1
    limits = context.execution_options.resource_limits
    context.execution_options.resource_limits = limits.copy(object_store_memory=READ_AHEAD)
    resources = _resources(args, config, ray)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actors = ActorPoolStrategy(size=args.ray_actors, max_tasks_in_flight_per_actor=GROUPS_AT_ONCE,
                               max_concurrent_calls_per_actor=GROUPS_AT_ONCE, enable_true_multi_threading=True)
    environment = environment_of(resources)
    groups = from_items([0]).map_batches(
        _read_groups, fn_args=[args, format, np.array(journal.places) >= 0], num_cpus=0, scheduling_strategy=here,
        runtime_env={"env_vars": environment})
    answers = groups.map_batches(Actor, fn_constructor_args=[args, os.getcwd()], batch_size=1, compute=actors,
                                 runtime_env={"env_vars": environment}, **resources)
    try:
        for batch in answers.iter_batches(batch_size=None, prefetch_batches=0):
            results = [Result(*parse_exact_json(result, WRAPPED)) for result in batch["result"]]
            yield results, int(batch["tokens"].sum())
    except ray.exceptions.RayError as error:
        # Ray tells of an error by the traceback of the actor, whose last line says what it was.
        raise ValueError(f"--ray: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _resources(args, config, ray):
    """What an actor takes, as `map_batches` wants it; says so where the cluster has less."""
    resources, missing = resources_of(ray, args.ray_actors, args.ray_resources, config.context.device_target)
    if missing:
        say("batch_generate", f"{args.ray_actors} actors take {missing}: those that find no place wait for it")
    return resources


def _read_groups(_, args, format, finished):
    """The rows of a file that are not finished, in groups of as many as a model answers at once."""
    group = []
    for record in read_records(args.input, format, args.prompt_column, skip=_Finished(finished)):
        group.append([record.number, record.fields, record.error, record.source])
        if len(group) == args.batch_size:
            yield {"group": [dump_json(group)]}
            group = []
    if group:
        yield {"group": [dump_json(group)]}


class _Finished:
    """A container of row numbers, from an array that says of each whether it is in."""

    def __init__(self, mask):
        self.mask = mask

    def __contains__(self, number):
        return number < len(self.mask) and self.mask[number]


class Actor:
    """
    One model. Ray calls it from several threads, with a group of rows each, which the engine answers together; each
    thread drives it until its own rows are done.

    Args:
        args (argparse.Namespace): The command line of batch_generate.
        folder (str): Where it was given.
    """

    def __init__(self, args, folder):
        os.chdir(folder)
        self.inbox = queue.SimpleQueue()  # (Record, the list that its Result goes to)
        self.outboxes = {}  # number of a row at work -> that list
        self.thread = ThreadPoolExecutor(max_workers=1)  # all that has to do with the model happens there
        self.worker = self.thread.submit(_build_worker, args).result()

    def __call__(self, batch):
        """Answer a group of rows; yields each Result when it is there."""
        results, given = [], 0
        rows = parse_exact_json(batch["group"][0], WRAPPED)
        for row in rows:
            self.inbox.put((Record(*row), results))
        while given < len(rows):
            self.thread.submit(self._step).result()
            for result in results[given:]:
                yield {"result": [dump_json(result)], "tokens": [result.content.get("completion_tokens", 0)]}
                given += 1

    def _step(self):
        """Take on rows for which there is room, and go a step further."""
        results = []
        while self.worker.has_room and not self.inbox.empty():
            record, self.outboxes[record.number] = self.inbox.get()
            results += self.worker.add(record)
        if self.worker.has_work:
            results += self.worker.step()
        for result in results:
            self.outboxes.pop(result.number).append(result)


def _build_worker(args):
    return build_worker(args, load_config(args.config, args.load_checkpoint, args.device_target, args.device_id))
