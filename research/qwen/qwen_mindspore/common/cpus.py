"""How many processors a program may use: what it is told to, what its affinity allows, what its container pays for."""
import math
import os
from pathlib import Path

from qwen_mindspore.common.text import shown

__all__ = ["check_threads", "thread_count", "usable_cpus"]

MOST_THREADS = 1024


def usable_cpus(root="/"):
    """
    The processors that this process may keep busy, at least 1: those of its affinity mask, fewer where a control group
    has a quota, as `docker run --cpus 2` sets it. More threads than that would be stopped together in the middle of
    their work.

    Args:
        root (str): Where /proc and /sys are.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), scheduler/sched-bwc.rst (cpu.cfs_quota_us).
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(Path(root)) for quota in _quota(folder)]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def thread_count(variable, text):
    """
    The number of threads that an environment variable asks for.

    Args:
        variable (str): Its name, for the message.
        text (str): What it says.

    Raises:
        ValueError: No number from 1 to 1024: more threads are a mistake, and starting them brings a machine to its
            knees.
    """
    digits = text.strip()
    if not digits.isdecimal() or not digits.strip("0"):
        raise ValueError(f"{variable}: expected a positive number, found {text!r}")
    if len(digits) > 9 or int(digits) > MOST_THREADS:
        raise ValueError(f"{variable}: expected at most {MOST_THREADS} threads, found {shown(text)}")
    return int(digits)


def check_threads():
    """ValueError for an OMP_NUM_THREADS that OpenMP, and with it torch and MindSpore, can't use."""
    for text in (os.environ.get("OMP_NUM_THREADS") or "1").split(","):  # one for each level of nesting
        thread_count("OMP_NUM_THREADS", text)


def _groups(root):
    """The folders of this process's control groups that may limit processors, with those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = [part for part in path.split("/") if part]
        for mount in [""] if not controllers else ["cpu", "cpu,cpuacct", controllers]:
            for depth in range(len(names), -1, -1):
                # In a container the path may be the host's, while its own group is mounted at the top.
                yield root.joinpath("sys/fs/cgroup", mount, *names[:depth])


def _quota(folder):
    """The processors that a control group's quota pays for, as a list of none or one."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return [int(quota) / int(period)] if quota not in ("max", "-1") else []
    except (OSError, ValueError, ZeroDivisionError):
        return []
