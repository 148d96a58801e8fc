"""The name under which version 0.1 saved `UniPCGridScheduler`: pipelines saved then still load."""

from typing import Any

import asddim_lib


def __getattr__(name: str) -> Any:
    return getattr(asddim_lib, name)
