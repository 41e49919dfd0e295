"""How many cores may be used, by files as Linux shows them: to make real cgroups takes root."""

import os

import pytest

from fast_train.common.cores import usable_cores

V1_MOUNT = "32 31 0:29 {mounted} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct"
V2_MOUNT = "25 24 0:23 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
OTHERS = "31 23 0:28 / /sys rw - sysfs sysfs rw\n33 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")


@pytest.fixture
def linux(tmp_path):
    """Writes a root folder. membership: /proc/self/cgroup. quotas: text by file, below the cgroups' folder."""

    def write(membership, mount, quotas, mounted="/"):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(membership + "\n")
        (tmp_path / "proc/self/mountinfo").write_text(f"{OTHERS}\n{mount.format(mounted=mounted)}\n")
        for name, text in quotas.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        return tmp_path

    return write


@pytest.mark.parametrize(("quota", "cores"), [
    ("max 100000", 8), ("300000 100000", 3), ("150000 100000", 2), ("50000 100000", 1), ("25000 50000", 1),
    ("9900000 100000", 8), ("", 8),
])  # fmt: skip
def test_a_quota_of_version_2_counts_in_whole_cores_rounded_up(linux, quota, cores):
    assert usable_cores(linux("0::/job", V2_MOUNT, {"job/cpu.max": quota})) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("300000", 3), ("150000", 2)])
def test_a_quota_of_version_1(linux, quota, cores):
    files = {
        "cpu,cpuacct/job/cpu.cfs_quota_us": quota,
        "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        "cpuset/job/cpu.max": "100000 100000",
    }
    assert usable_cores(linux("5:cpuset:/job\n4:cpu,cpuacct:/job\n0::/", V1_MOUNT, files)) == cores


def test_the_smallest_quota_on_the_way_to_the_root_counts(linux):
    files = {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000", "c/cpu.max": "100000 100000"}
    assert usable_cores(linux("0::/a/b/d", V2_MOUNT, files)) == 2


@pytest.mark.parametrize(("path", "mounted"), [
    ("/docker/7f", "/docker/7f"), ("/", "/"), ("/kubepods/pod1/7f", "/elsewhere"), ("/../../7f", "/"),
])  # fmt: skip
def test_a_container_reads_its_own_cgroup_where_that_is_mounted(linux, path, mounted):
    """The path that the kernel tells may be one of the host."""
    assert usable_cores(linux(f"0::{path}", V2_MOUNT, {"cpu.max": "200000 100000"}, mounted)) == 2


def test_affinity_and_the_variable_of_openmp_limit_too(tmp_path, monkeypatch):
    """Where there are no cgroups at all."""
    assert usable_cores(tmp_path) == 8
    for text, cores in (("3", 3), ("4,2", 4), ("64", 8), ("0", 1), ("many", 8), ("", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert usable_cores(tmp_path) == cores
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5})
    assert usable_cores(tmp_path) == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path) == 6
