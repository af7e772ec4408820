"""This machine and what this process may use of it: versions, CPUs, memory."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import distributions, version
from pathlib import Path

from threadpoolctl import threadpool_info


def versions() -> dict[str, str]:
    """The versions of Python, NumPy, its BLAS and PyTorch (if installed), the system and the CPU."""
    blas = next((each for each in threadpool_info() if each["user_api"] == "blas"), {})
    names = (blas.get(key) for key in ("internal_api", "version", "architecture"))
    found = {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "blas": " ".join(name for name in names if name),
        "torch": next((each.version for each in distributions(name="torch")), ""),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
    }
    return {name: value for name, value in found.items() if value}


def _proc(file: str, field: str) -> str:
    """A field of a file in /proc, "" if there is none."""
    with suppress(OSError):
        for line in Path("/proc", file).read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""


def peak_memory() -> int:
    """The peak resident memory of this process in bytes; 0 if unknown."""
    # getrusage's figure would count the parent's memory at the fork too.
    if found := _proc("self/status", "VmHWM"):
        return int(found.split()[0]) << 10
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)


def available_cpus(root: Path = Path("/")) -> int:
    """The CPUs that this process may use, at least 1.

    The minimum of its affinity, the CPU quota of its container (cgroup v1 or v2, rounded up) and OMP_NUM_THREADS.
    root: of /proc and /sys
    """
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group in _cgroups(root, "cpu"):
        # v2: "QUOTA PERIOD" or "max PERIOD"; v1: a file each, the quota -1 where there is none
        limit = _numbers(group / "cpu.max", group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        if len(limit) == 2 and min(limit) > 0:
            counts.append(-(-limit[0] // limit[1]))
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" is for nested loops
    if threads.isdecimal():
        counts.append(int(threads))
    return max(1, min(counts))


def available_memory(root: Path = Path("/")) -> int:
    """The bytes of memory that this process may use: the machine's, or its container's limit (cgroup).

    root: of /proc and /sys
    """
    try:
        sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes = [1 << 40]  # a bound that none reaches
    for group in _cgroups(root, "memory"):
        sizes += _numbers(group / "memory.max", group / "memory.limit_in_bytes")
    return min(size for size in sizes if size > 0)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders with the limits of this process: its cgroup's and those above it, v1 and v2."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        # In a container the path may be the host's, while the mount is the container's own group.
        group = mount / path.strip("/")
        yield from (mount, *(each for each in (group, *group.parents) if mount in each.parents))


def _numbers(*paths: Path) -> list[int]:
    """The integers in those of the files that exist, without words such as "max"."""
    words = []
    for path in paths:
        with suppress(OSError):
            words += path.read_text(encoding="utf-8").split()
    return [int(word) for word in words if word.lstrip("-").isdecimal()]


def keep_freed_memory():
    """Let glibc keep the memory of a step's activations for the next step.

    To take fresh, zeroed pages from the kernel was a seventh of a `nano` step on two threads, a quarter on one.
    """
    _set_malloc(
        mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1, arena_max=1
    )  # a thread's own gives back


def return_freed_memory():
    """Have glibc return large arrays to the system when they are freed, where it would keep them for the next ones.

    Those of a sharded model are of many sizes: a process came to hold nearly all that it had freed.
    """
    _set_malloc(mmap_threshold=1 << 20)


def _set_malloc(**values: int):
    """Set parameters of glibc's malloc; there is nothing to set elsewhere."""
    codes = {"trim_threshold": -1, "mmap_threshold": -3, "arena_max": -8}  # from malloc.h
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for name, value in values.items():
            mallopt(codes[name], value)
