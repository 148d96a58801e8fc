"""The peak memory of a device."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # on Linux


class Peak:
    """The peak memory in MB since this object was made.

    On a CUDA device that is the memory of tensors, on a CPU all the memory of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self._known = device, device.type == "cuda"
        if self._known:
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            # Fails on other systems, and where the file is read-only.
            with contextlib.suppress(OSError):
                (PROCESS / "clear_refs").write_text("5")
                self._known = True

    def megabytes(self) -> float | None:
        """The peak so far; None where the system does not report it."""
        if not self._known:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        peak = re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())
        return int(peak[1]) * 1024 / 1e6 if peak else None
