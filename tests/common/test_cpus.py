"""Processors that may be used: the affinity mask, and the quota of a control group, of either version, at any depth."""
import os

import pytest

from qwen_mindspore.common.cpus import usable_cpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes a machine of 64 processors of files, and returns its root."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)

    def make(cgroup, **files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, content in files.items():
            name = name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


@pytest.mark.parametrize("content, expected", [
    ("200000 100000\n", 2), ("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 64),
    ("6400000 50000\n", 64),
    ("", 64), ("two 100000\n", 64), ("1 0\n", 64)])
def test_the_quota_of_version_2(machine, content, expected):
    assert usable_cpus(machine("0::/\n", cpu_max=content)) == expected


def test_the_least_quota_of_all_groups_above_counts(machine):
    assert usable_cpus(machine("0::/a/b/c\n", a__cpu_max="300000 100000\n", a__b__cpu_max="max 100000\n",
                               a__b__c__cpu_max="800000 100000\n")) == 3


def test_a_path_of_the_host_does_not_hide_the_containers_own_quota(machine):
    assert usable_cpus(machine("0::/system.slice/docker-1f.scope\n", cpu_max="200000 100000\n")) == 2


@pytest.mark.parametrize("quota, expected", [("200000\n", 2), ("-1\n", 64)])
def test_the_quota_of_version_1(machine, quota, expected):
    assert usable_cpus(machine("5:memory:/x\n3:cpu,cpuacct:/docker/1f\n", **{
        "cpu,cpuacct__docker__1f__cpu_cfs_quota_us": quota,
        "cpu,cpuacct__docker__1f__cpu_cfs_period_us": "100000\n"})) == expected


def test_the_mask_counts_where_there_is_no_quota(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert usable_cpus(machine("0::/\n", cpu_max="800000 100000\n")) == 2
    assert usable_cpus(tmp_path / "nothing here") == 2
