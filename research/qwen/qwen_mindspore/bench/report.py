"""From the figures of benchmark.py's contestants to its report: medians, floors, table and plot."""
import datetime
import os
import platform
import statistics
from pathlib import Path

from qwen_mindspore.common.cpus import usable_cpus
from qwen_mindspore.common.plots import import_pyplot


def step_floor(rates, work):
    """Seconds that a step takes at the very least.

    Args:
        rates: {"bandwidth": bytes/s, "matmul": operations/s} of the machine.
        work: (bytes to read, operations) of the step.
    """
    return max(work[0] / rates["bandwidth"], work[1] / rates["matmul"])


def prefill_work(sizes, tokens):
    """(bytes, operations) of one prompt, whose last token alone needs the head. A token attends to half of the
    prompt on average. Sizes are those of `Ours.sizes` in benchmark_contestant.py."""
    linear = 2 * (sizes["step_parameters"] - sizes["head_parameters"]) * tokens + 2 * sizes["head_parameters"]
    return sizes["step_bytes"], linear + 2 * sizes["attention_width"] * tokens**2


def decode_work(sizes, batch, context):
    """(bytes, operations) of one step of `batch` sequences that have `context` tokens in their caches. Weights are
    read once, the embedding, of which a step takes a row, not at all."""
    linear = 2 * sizes["step_parameters"] * batch
    return (sizes["step_bytes"] + batch * context * sizes["cache_bytes_per_token"],
            linear + 4 * sizes["attention_width"] * context * batch)


def make_report(model, settings, rates, figures):
    """
    All that --json writes.

    Args:
        model: what was measured, see `find_model` in benchmark.py.
        settings: prompts, batches, context and new_tokens in tokens or sequences, repeat.
        rates: see `step_floor`.
        figures: {contestant: [what benchmark_contestant.py printed, round by round]}.

    Returns:
        dict: date, machine, model, settings, contestants {name: its sizes in bytes; prefill and decode in tokens/s,
        with the `share_of_floor` of the median; seconds_to; memory_bytes; same_tokens, how many greedy tokens come
        before the first that differs from the first contestant's; versions}. What is measured each round is
        {"median", "min", "max"}, or None where it failed in every round.
    """
    first = next(iter(figures.values()))[0]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {**describe_machine(), **rates},
        "model": model,
        "settings": settings,
        "contestants": {name: _summary(rounds, first, settings, rates) for name, rounds in figures.items()},
    }


def _summary(rounds, first, settings, rates):
    sizes = {**first["sizes"], **rounds[0]["sizes"]}
    # The steps after the first have one to new_tokens - 1 tokens beside the prompt in the cache.
    context = settings["context"] + settings["new_tokens"] / 2
    return {
        "versions": rounds[0]["versions"],
        **rounds[0]["sizes"],
        "prefill": {tokens: _speed(tokens, [figures["prefill"].get(str(tokens)) for figures in rounds],
                                   step_floor(rates, prefill_work(sizes, tokens)))
                    for tokens in settings["prompts"]},
        "decode": {batch: _speed(batch, [figures["decode"].get(str(batch)) for figures in rounds],
                                 step_floor(rates, decode_work(sizes, batch, context)))
                   for batch in settings["batches"]},
        **{kind: {key: _spread([figures[kind][key] for figures in rounds]) for key in rounds[0][kind]}
           for kind in ("seconds_to", "memory_bytes")},
        "same_tokens": _same_tokens(first["tokens"], rounds[0]["tokens"]),
    }


def _speed(tokens, seconds, floor):
    seconds = [value for value in seconds if value is not None]
    if not seconds:
        return None
    return {**_spread([tokens / value for value in seconds]), "share_of_floor": floor / statistics.median(seconds)}


def _spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def _same_tokens(expected, found):
    return next((i for i, (left, right) in enumerate(zip(expected, found)) if left != right), len(found))


def describe_machine():
    """Name, threads, memory and system of this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {"cpu": cpu, "threads": usable_cpus(), "system": platform.platform(), "python": platform.python_version(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def table(report):
    """The report as text: what was measured, then a column for each contestant."""
    model, machine, settings, contestants = (report[key] for key in ("model", "machine", "settings", "contestants"))
    ours = next(iter(contestants.values()))
    rows = [("", list(contestants)), *_speed_rows(contestants), *_start_rows(contestants)]
    if model["checkpoint"]:
        same = [f"{figures['same_tokens']} of {settings['new_tokens']}" for figures in contestants.values()]
        rows.append((f"greedy tokens as {next(iter(contestants))}", same))
    widths = [max(len(cells[column]) for _, cells in rows) + 3 for column in range(len(contestants))]
    head = f"""\
{model['name']}: {ours['weight_bytes'] / 1e6:.0f} MB of weights, {ours['step_bytes'] / 1e6:.0f} MB of them read a \
step; room for {ours['cache_bytes'] / 1e6:.0f} MB of cache.
{machine['cpu']}, {machine['threads']} threads, {machine['bandwidth'] / 1e9:.1f} GB/s, \
{machine['matmul'] / 1e9:.0f} GFLOP/s in float32.
Tokens/s of prefill, and of decoding {settings['new_tokens']} tokens after {settings['context']}: the median of \
{settings['repeat']} rounds, and its share of the floor.

"""
    return head + "\n".join(f"{title:<24}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths))
                            for title, cells in rows)


def _speed_rows(contestants):
    for kind, unit in (("prefill", "tokens"), ("decode", "at once")):
        for key in next(iter(contestants.values()))[kind]:
            speeds = [figures[kind][key] for figures in contestants.values()]
            yield (f"{kind}, {key} {unit}",
                   [f"{speed['median']:.1f} {speed['share_of_floor']:4.0%}" if speed else "failed" for speed in speeds])


def _start_rows(contestants):
    stages = {
        "seconds_to": ("s to end of imports", "s to end of loading", "s to first token", "s to second token"),
        "memory_bytes": ("GB after imports", "GB loaded", "GB peak of loading", "GB peak of all"),
    }
    for kind, titles in stages.items():
        unit = 1e9 if kind == "memory_bytes" else 1
        for title, key in zip(titles, next(iter(contestants.values()))[kind]):
            yield title, [f"{figures[kind][key]['median'] / unit:.2f}" for figures in contestants.values()]


def plot(report, path):
    """Draw the speeds of prefill and decode as bars, with the least and the greatest of the rounds."""
    pyplot = import_pyplot()
    contestants = report["contestants"]
    width = 1 / (len(contestants) + 1)
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, kind, label in zip(axes, ("prefill", "decode"), ("tokens of the prompt", "sequences at once")):
        for number, (name, figures) in enumerate(contestants.items()):
            speeds = [speed or {"median": 0, "min": 0, "max": 0} for speed in figures[kind].values()]
            middle = [speed["median"] for speed in speeds]
            spread = [[speed["median"] - speed["min"] for speed in speeds],
                      [speed["max"] - speed["median"] for speed in speeds]]
            axis.bar([place + number * width for place in range(len(speeds))], middle, width, yerr=spread, label=name)
        axis.set_xticks([place + (len(contestants) - 1) * width / 2 for place in range(len(speeds))], figures[kind])
        axis.set(title=kind, xlabel=label, ylabel="tokens/s")
    axes[0].legend()
    figure.suptitle(f"{report['model']['name']}, {report['machine']['cpu']}")
    figure.savefig(path, dpi=150)
