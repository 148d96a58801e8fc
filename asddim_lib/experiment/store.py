"""Pictures: drawn from prompts and seeds, and kept a batch a file, which tells when it is damaged."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.files import write_whole
from asddim_lib.metrics.distance import images_to_uint8
from asddim_lib.models.load import Pipeline, network

log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """Pictures (n × 3 × h × w, uint8), the latents that they were decoded from (n × c × h × w), and the seconds that one took.

    `finite` (n, bool) is false where the network gave a number that is not: such a picture is black. `at_once` pictures were drawn together.
    """

    images: Tensor
    latents: Tensor
    seconds: float
    finite: Tensor
    at_once: int


@torch.no_grad()
def draw(
    pipe: Pipeline, prompts: list[str], seeds: list[int], *, batch_size: int = 50, **how: Any
) -> Drawn:
    """Pictures for prompts, each from the noise of its own seed, or all from `latents` (1 × c × h × w), if given. What else is given,
    the pipeline takes: guidance_scale, num_inference_steps or timesteps or sigmas, one negative_prompt for all.

    When memory runs out, half as many are drawn at once, with a warning: each picture has its own noise, so that it stays the same but for
    the rounding of sums. A pipeline without `callback_on_step_end` shows no latents: they come out empty. Raises ValueError when the memory
    does not hold a single picture.
    """
    size = min(batch_size, len(prompts))
    try:
        return _draw(pipe, prompts, seeds, size, **how)
    except RuntimeError as error:
        if (
            not isinstance(error, torch.OutOfMemoryError)
            and "out of memory" not in str(error)
            and "can't allocate memory" not in str(error)
        ):
            raise
        reason = str(error).splitlines()[0]
    check(
        size > 1,
        "batch_size",
        1,
        f"the device has no memory for one picture ({reason}); take a smaller dtype or another device",
    )
    log.warning(
        "no memory for %d pictures at once (%s); drawing %d at once", size, reason, size // 2
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return draw(pipe, prompts, seeds, batch_size=size // 2, **how)


def _draw(
    pipe: Pipeline,
    prompts: list[str],
    seeds: list[int],
    batch_size: int,
    latents: Tensor | None = None,
    negative_prompt: str | None = None,
    **how: Any,
) -> Drawn:
    images, ends, finite, begun = [], [], [], time.perf_counter()
    last = torch.empty(0)

    def keep(
        pipe: Pipeline, step: int, timestep: Tensor, values: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        nonlocal last
        last = values["latents"]
        return values

    watch = (
        {"callback_on_step_end": keep}
        if "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
        else {}
    )
    for first in range(0, len(prompts), batch_size):
        chosen = slice(first, first + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        more: dict[str, Any] = (
            {}
            if latents is None
            else {"latents": latents.to(network(pipe).dtype).repeat(len(generators), 1, 1, 1)}
        )
        more |= {"negative_prompt": [negative_prompt] * len(generators)} if negative_prompt else {}
        made = pipe(
            prompts[chosen], generator=generators, output_type="np", **how, **more, **watch
        ).images
        sound = torch.from_numpy(np.isfinite(made).all((1, 2, 3)))
        if len(last):
            sound &= last.isfinite().flatten(1).all(1).cpu()
        images.append(images_to_uint8(np.where(sound[:, None, None, None], made, 0)))
        ends.append(last.float().cpu())
        finite.append(sound)
    return Drawn(
        torch.cat(images),
        torch.cat(ends),
        (time.perf_counter() - begun) / len(prompts),
        torch.cat(finite),
        batch_size,
    )


def load_latents(file: str) -> Tensor | None:
    """The noise (1 × c × h × w) in a file that `torch.save` wrote; none without a file. Raises ValueError for one that holds something else."""
    if not file:
        return None
    try:
        held = torch.load(file, weights_only=True)
    except Exception as error:  # pickle's, zipfile's and the system's share no base
        raise ValueError(
            f"latents is {file!r}, which could not be read ({str(error).splitlines()[0]}); give a file that torch.save wrote"
        ) from error
    check(
        isinstance(held, Tensor) and held.ndim == 4 and len(held) == 1,
        "latents",
        f"{file!r}, {getattr(held, 'shape', type(held))}",
        "give a tensor of 1 × c × h × w",
    )
    return held


def save(file: Path, drawn: Drawn, made_from: dict[str, Any] | None = None) -> None:
    """Keeps pictures, with what they were `made_from` (as JSON) and the number of threads that drew them, in a safetensors file with a checksum."""
    kept = {
        "images": drawn.images,
        "latents": drawn.latents,
        "finite": drawn.finite,
        "seconds": torch.tensor(drawn.seconds, dtype=torch.float64),
    }
    kept |= {
        "threads": torch.tensor(torch.get_num_threads()),
        "at_once": torch.tensor(drawn.at_once),
    }
    said = json.dumps(made_from)
    write_whole(
        file,
        partial(save_file, kept, metadata={"made_from": said, "sha256": _checksum(kept, said)}),
    )


def load(file: Path) -> dict[str, Tensor]:
    """What `save` kept. Raises FileNotFoundError, and ValueError, which names the file, where it does not hold what was written."""
    return _load(file)[0]


def made_from(file: Path) -> dict[str, Any] | None:
    """What `save` was told that the pictures were made from. Raises as `load` does."""
    return _load(file)[1]


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safe_open(file, "pt") as held:
            kept, said = (
                {name: held.get_tensor(name) for name in held.keys()},
                held.metadata() or {},
            )  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{file} is damaged ({error}); run the same command again to draw it anew"
        ) from error
    right = said.get("sha256") == _checksum(kept, said.get("made_from", ""))
    check(
        right,
        str(file),
        "damaged (its checksum does not match)",
        "run the same command again to draw it anew",
    )
    return kept, json.loads(said["made_from"])


def whole(file: Path) -> bool:
    """Whether the file holds a batch without a fault. Says so where it is damaged."""
    try:
        return bool(load(file)["finite"].all())
    except FileNotFoundError:
        return False
    except ValueError as error:
        log.warning("%s", error)
        return False


def _checksum(tensors: dict[str, Tensor], said: str) -> str:
    digest = hashlib.sha256(said.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
