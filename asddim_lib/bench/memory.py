"""How much memory a device held at its peak."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

PROCESS = Path("/proc/self")  # Linux's


class Peak:
    """The most memory, in MB, that was held at once since this was made: a CUDA device's tensors, or on a CPU all that the process holds."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._known = device, device.type == "cuda"
        if self._known:
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            with contextlib.suppress(
                OSError
            ):  # another system, or one that lets nobody write there
                (PROCESS / "clear_refs").write_text("5")
                self._known = True

    def megabytes(self) -> float | None:
        """The peak so far; None where the system does not say."""
        if not self._known:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        found = re.search(r"VmHWM:\s+(\d+) kB", (PROCESS / "status").read_text())
        return int(found[1]) * 1024 / 1e6 if found else None
