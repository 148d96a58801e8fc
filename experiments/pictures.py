"""Pictures of prompts and seeds in one call, for chapters and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from asddim_lib.models.load import Pipeline
from asddim_lib.pipeline.run import Drawn, Run


def draw(
    pipe: Pipeline,
    prompts: list[str],
    seeds: Sequence[int],
    *,
    guidance_scale: float | None = None,
    batch_size: int = 50,
    latents: Tensor | None = None,
    negative_prompt: str | None = None,
    truncate: bool = False,
    **steps: Any,
) -> Drawn:
    """`Run.pictures` in one call. With `latents` (1 × c × h × w) every picture starts from them."""
    options: dict[str, Any] = {} if latents is None else {"latents": latents}
    options |= {"negative_prompt": negative_prompt} if negative_prompt else {}
    run = Run(pipe, prompts, seeds, guidance_scale, batch_size, options, truncate)
    return run.pictures(**steps)
