"""What this machine is: its versions, its processor, the memory that a process has taken."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from threadpoolctl import threadpool_info


def versions() -> dict[str, str]:
    """What computes here: Python, NumPy with its BLAS, PyTorch where it is installed, system and processor."""
    blas = next((each for each in threadpool_info() if each["user_api"] == "blas"), {})
    found = {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "blas": " ".join(
            str(blas[key]) for key in ("internal_api", "version", "architecture") if blas.get(key)
        ),
        "torch": _installed("torch"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
    }
    return {name: value for name, value in found.items() if value}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """The processor's name; Linux keeps it in a file, the other systems tell it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes; 0 where the system does not tell."""
    try:
        # getrusage's figure would count the parent's memory at the fork too.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        if sys.platform == "win32":
            return 0
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
