"""Peak memory of each side, in a process of its own, above what it holds once the policy's weights are loaded.

What is above: the reference, the optimizer's state, gradients and activations. Linux only: the peak is the kernel's, and it is set back
when the weights are there. Freed memory goes back to the kernel at once in these processes: what an allocator would keep instead is half as
much again in one run and nothing in the next.
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.vs_trl.case import Case

AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}  # bytes; glibc's own limit at first, which grows if it is not set
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peaks(case: Case, limit: float) -> dict[str, float]:
    """MiB by side; a side whose process failed or took more than ``limit`` seconds is missing, and so are both where the kernel can't
    say."""
    found = {}
    for side in case.sides if RESET.exists() else ():
        command = [sys.executable, "-m", "benchmarks.vs_trl", "--peak", side, case.to_json()]
        try:
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit, env=os.environ | AT_ONCE)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            print(f"No peak memory of {side}: {type(error).__name__}.", file=sys.stderr)
        else:
            found[side] = float(said.stdout.split()[-1])
    return found


def set_back() -> float:
    """Forget the peak of this process; MiB that it holds now."""
    RESET.write_text("5")
    return _mebibytes("VmRSS")


def peak() -> float:
    """The most that this process held since then, MiB."""
    return _mebibytes("VmHWM")


def _mebibytes(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024
