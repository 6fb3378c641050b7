"""What a run was made with: code, versions, device."""
import ctypes
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

from common.amp import autocast

ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    from importlib.metadata import version  # torchvision itself takes a second to import
    return {"python": platform.python_version(), "torch": str(torch.__version__), "torchvision": version("torchvision"),
            "numpy": np.__version__}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int:
    """Bytes that can be taken on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return min([1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))), *left_by_groups()])
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def groups(own: Path = OWN_GROUP, root: Path = GROUPS) -> list[Path]:
    """Folders of this process's control group (version 2; of a container, a Slurm job) and of those above."""
    try:
        group = root / next(line[4:] for line in own.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):
        return []
    return [group, *group.parents]


def cores_by_groups(own: Path = OWN_GROUP, root: Path = GROUPS) -> list[float]:
    """Cores' worth of time that each control group with a limit may take."""
    found = []
    for folder in groups(own, root):
        try:
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        except (OSError, ValueError):                         # no such file, or "max": no limit
            continue
        found.append(quota / period)
    return found


def cores() -> int:
    """Cores that this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([found, *cores_by_groups()])))


def left_by_groups(own: Path = OWN_GROUP, root: Path = GROUPS) -> list[int]:
    """Bytes left below the limit of each control group that has one."""
    left = []
    for folder in groups(own, root):
        try:
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):                         # no such file, or "max": no limit
            continue
        left.append(limit - used + int(stat.get("inactive_file", 0)))           # what of the files' cache goes when asked
    return left


def keep_memory() -> None:
    """Tells glibc to keep freed memory instead of handing every activation back to the system and faulting it in again.

    Measured at 5 to 15 % of a ResNet-8 step on CPUs; elsewhere than on Linux with glibc it does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4                     # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 2 ** 31 - 1)
        libc.mallopt(mmap_max, 0)


def warm_up(device: torch.device, amp: torch.dtype | None) -> None:
    """Before the clock: GPU libraries load at their first call, for scratch in its first step, for others in a preparation."""
    if device.type != "cuda":
        return
    with torch.random.fork_rng([device]):
        image = torch.zeros(8, 16, 32, 32, device=device).to(memory_format=torch.channels_last)
        layers = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                     torch.nn.Linear(16, 16)).to(device)
        for dtype in {amp, None}:
            with autocast(dtype, device):
                layers(image).sum().backward()
        torch.cuda.synchronize(device)


def code_version() -> dict:
    """Commit of this repository, and whether code differed from it; "unknown" outside git."""
    def git(*args):
        return subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True).stdout.strip()
    try:
        code = ("common", "methods", "baselines", "requirements.txt")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", *code))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": False}
