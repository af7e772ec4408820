"""What of a machine a process may use: its affinity, its container's limits, what OpenMP was told."""

from pathlib import Path

import pytest

from harness.training import machine
from harness.training.machine import available_cpus, available_memory

GB = 10**9


@pytest.fixture(autouse=True)
def large(monkeypatch):
    """A machine with 16 CPUs and 64 GB, whose environment says nothing of threads."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    sizes = {"SC_PHYS_PAGES": 64 * GB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(machine.os, "sysconf", sizes.__getitem__, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def system(root: Path, group: str, files: dict[str, str]) -> Path:
    """A root folder with the line of /proc/self/cgroup and files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


V1 = "9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("group", "files", "cpus"),
    [
        pytest.param("0::/", {"cpu.max": "200000 100000"}, 2, id="v2, two CPUs"),
        pytest.param("0::/", {"cpu.max": "150000 100000"}, 2, id="v2, one and a half"),
        pytest.param("0::/", {"cpu.max": "1000 100000"}, 1, id="v2, a hundredth"),
        pytest.param("0::/", {"cpu.max": "max 100000"}, 16, id="v2, no limit"),
        pytest.param("0::/", {"cpu.max": "3200000 100000"}, 16, id="v2, more than there are"),
        pytest.param(
            "0::/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3, id="v2, above"
        ),
        pytest.param("0::/", {}, 16, id="v2, no file"),
        pytest.param(
            V1, {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 3, id="v1, mounted"
        ),
        pytest.param(
            V1,
            {"cpu/docker/abc/cpu.cfs_quota_us": "50000", "cpu/docker/abc/cpu.cfs_period_us": "10000"},
            5,
            id="v1, the host's path",
        ),
        pytest.param(
            V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16, id="v1, no limit"
        ),
        pytest.param(V1, {"cpu/cpu.cfs_quota_us": "", "cpu/cpu.cfs_period_us": "100000"}, 16, id="v1, empty"),
    ],
)
def test_the_quota_of_a_container(tmp_path, group, files, cpus):
    """A quota of CPU time limits the CPUs, rounded up, wherever above the process it stands."""
    assert available_cpus(system(tmp_path, group, files)) == cpus


@pytest.mark.parametrize(
    ("value", "cpus"), [("3", 3), ("4,2", 4), ("64", 16), ("0", 1), ("", 16), ("many", 16), ("-1", 16)]
)
def test_what_openmp_was_told(tmp_path, monkeypatch, value, cpus):
    """OMP_NUM_THREADS limits them too, the first of its numbers; what is no number does not."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert available_cpus(tmp_path) == cpus


def test_the_affinity(tmp_path, monkeypatch):
    """The least of all counts."""
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {1, 5}, raising=False)
    assert available_cpus(system(tmp_path, "0::/", {"cpu.max": "800000 100000"})) == 2


@pytest.mark.parametrize(
    ("group", "files", "memory"),
    [
        pytest.param("0::/", {"memory.max": str(2 * GB)}, 2 * GB, id="v2"),
        pytest.param("0::/", {"memory.max": "max"}, 64 * GB, id="v2, no limit"),
        pytest.param(
            "0::/a/b", {"a/memory.max": str(3 * GB), "a/b/memory.max": "max"}, 3 * GB, id="v2, above"
        ),
        pytest.param(V1, {"memory/memory.limit_in_bytes": str(4 * GB)}, 4 * GB, id="v1"),
        pytest.param(V1, {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 64 * GB, id="v1, no limit"),
        pytest.param(V1, {"memory/docker/abc/memory.limit_in_bytes": str(GB)}, GB, id="v1, the host's path"),
        pytest.param("", {}, 64 * GB, id="none"),
    ],
)
def test_the_memory_of_a_container(tmp_path, group, files, memory):
    """The limit of the container, or of one around it, where that is less than the machine has."""
    found = available_memory(system(tmp_path, group, files))
    assert found == pytest.approx(memory, abs=4096)


def test_here():
    """With the files of the system that runs this, whatever they say, there is something to use."""
    assert 1 <= available_cpus() <= 16
    assert 0 < available_memory() <= 64 * GB
