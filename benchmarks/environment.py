"""Where a run was computed: versions, git revision, device, peak memory."""

from __future__ import annotations

import importlib
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import featemb

_PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy", "torchrec")


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of featemb, Python and the packages that can move a result."""
    found = {"featemb": featemb.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=1)
def git() -> dict[str, Any]:
    """Revision of the checkout that featemb runs from; nulls where it runs from none."""
    module = Path(str(importlib.import_module("featemb").__file__)).resolve()

    def ask(*arguments: str) -> str | None:
        command = ["git", "-C", str(module.parent), *arguments]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    # An installed package may lie inside of somebody else's checkout.
    if ask("ls-files", "--error-unmatch", module.name) is None:
        return {"revision": None, "dirty": None}
    changes = ask("status", "--porcelain")
    return {
        "revision": ask("rev-parse", "HEAD"),
        "dirty": None if changes is None else changes != "",
    }


def device(name: str) -> dict[str, Any]:
    """Type, model name and number of CPU threads of a torch device."""
    place = torch.device(name)
    model = torch.cuda.get_device_name(place) if place.type == "cuda" else _cpu()
    return {"type": place.type, "name": model, "threads": torch.get_num_threads()}


@lru_cache(maxsize=1)
def _cpu() -> str:
    table = Path("/proc/cpuinfo")  # Linux; elsewhere the platform's word is all there is
    for line in table.read_text("utf-8").splitlines() if table.is_file() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def start_peak(name: str) -> None:
    """Begin to watch the peak memory of a device, where it can tell."""
    if torch.device(name).type == "cuda":
        torch.cuda.reset_peak_memory_stats(name)


def peak_device(name: str) -> int | None:
    """Peak bytes of tensors on the device since `start_peak`; None where it cannot tell."""
    return torch.cuda.max_memory_allocated(name) if torch.device(name).type == "cuda" else None


def peak_rss() -> int:
    """Peak resident bytes of this process since it began."""
    status = Path("/proc/self/status")  # getrusage counts what the parent held when it forked
    for line in status.read_text("utf-8").splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def synchronize(name: str) -> None:
    """Wait for the device, so that a clock read next is true."""
    if torch.device(name).type == "cuda":
        torch.cuda.synchronize(name)
