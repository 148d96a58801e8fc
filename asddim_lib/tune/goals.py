"""Goals: what a grid's pictures are compared by.

Nearness in latents ranks grids as a faithful preview does, and not as people do: a grid can end
nearer to the fine solution and draw worse pictures. An image encoder's embedding ranks them much
more as a judge of pictures does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from asddim_lib.errors import check
from asddim_lib.grids.uniform import uniform
from asddim_lib.measure.fingerprint import of_values
from asddim_lib.measure.run import Run
from asddim_lib.metrics.clip import load_clip
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.metrics.encoders import Encoder, encoder_for
from asddim_lib.models.load import BUNDLED, Pipeline
from asddim_lib.schedulers.solvers import own_scheduler

#: Added to seeds for fine pictures of other noise.
OTHER_SEEDS = 10**6


class Goal(ABC):
    """What of a picture is looked at, and how far it is from what is wanted: lower is better."""

    name: ClassVar[str]
    #: Whether `wanted` needs fine pictures of the prompts' own noise, and of other noise.
    fine, others = True, False

    @abstractmethod
    def look(self, run: Run, grid: Sequence[int]) -> Tensor:
        """What is looked at (n × d) in the pictures that a run draws on a grid."""

    @abstractmethod
    def losses(self, seen: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        """One number for each picture (n): its part of the goal. They are averaged."""

    @property
    def identity(self) -> str:
        """A hash of all that `look` depends on beside run and grid."""
        return of_values(self.name)

    def wanted(self, run: Run, steps: int) -> dict[str, Tensor]:
        """What the pictures of a run's prompts should look like, by name.

        By default that of pictures of `steps` even steps, from the same noise.
        """
        found = {"fine": self.look(fine_run(run), even(run, steps))} if self.fine else {}
        if self.others:
            assert run.seeds is not None
            elsewhere = replace(run, seeds=[seed + OTHER_SEEDS for seed in run.seeds])
            found["others"] = self.look(fine_run(elsewhere), even(run, steps))
        return found

    def evaluations(self, run: Run, steps: int) -> int:
        """The network evaluations of `wanted`."""
        return steps * run.evaluations_per_step * (self.fine + self.others)


def fine_run(run: Run) -> Run:
    """The run by DDIM, or Euler for flow matching: the fine solution is first order's."""
    return run.prepared_with(own_scheduler(run.pipe.scheduler))


def even(run: Run, steps: int) -> list[int]:
    """Evenly spaced timesteps from the highest down."""
    return uniform("trailing", len(run.schedule), steps)


class Latents(Goal):
    """The final latents: the goal of a faithful preview.

    A grid that is nearest in them shows the composition that many steps would give.
    """

    name = "latents"

    def look(self, run: Run, grid: Sequence[int]) -> Tensor:
        return run.ends(grid)

    def losses(self, seen: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        return relative_distance(seen, wanted["fine"])


@dataclass(frozen=True)
class Embedding(Goal):
    """The distance of an image encoder's embeddings, relative to the spread of the fine ones."""

    encoder: Encoder
    batch: int = 64
    name = "embedding"

    @property
    def identity(self) -> str:
        weights = dict(self.encoder.network.state_dict())
        return of_values(self.name, self.encoder.name, weights)

    def look(self, run: Run, grid: Sequence[int]) -> Tensor:
        return self.embedded(run.pictures(grid).images)

    @torch.no_grad()
    def embedded(self, images: Tensor) -> Tensor:
        """The embeddings (n × d, on the CPU) of pictures (n × 3 × h × w, uint8)."""
        return torch.cat([self.encoder(part).cpu() for part in images.split(self.batch)])

    def losses(self, seen: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        return relative_distance(seen, wanted["fine"])


@dataclass(frozen=True)
class Distribution(Embedding):
    """The embedding's distance, and how unlike the set of pictures is to fine ones of other noise.

    The second part is the squared MMD with KID's polynomial kernel: picture i's part of it is
    mean k(i, pictures) − 2 mean k(i, others), in units of `weight` times the fine pictures' own
    value of mean k. GAS (2510.17699) finds such a term to matter little in its weight.
    """

    weight: float = 1.0
    name = "embedding+distribution"
    others = True

    def losses(self, seen: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        paired, others = super().losses(seen, wanted), wanted["others"]
        count = len(seen)
        own = _kernel(seen, seen)
        among = (own.sum(1) - own.diagonal()) / (count - 1)
        apart = _kernel(seen, others).mean(1)
        scale = (wanted["fine"] - wanted["fine"].mean(0)).square().sum(1).mean()
        return paired + self.weight * (among - 2 * apart) / scale


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel, (⟨x, y⟩ + 1)³, of embeddings of length 1."""
    return (x @ y.T + 1) ** 3


@dataclass(frozen=True)
class Score(Embedding):
    """The CLIP score with the prompt, negative: only where a user asks for it by name.

    Such a score can be raised by pictures that are worse; verify it by another.
    """

    clip: str | None = None
    name = "score"
    fine = False

    def wanted(self, run: Run, steps: int) -> dict[str, Tensor]:
        device = str(next(self.encoder.network.parameters()).device)
        model, processor = load_clip(self.clip, device)
        words = processor.tokenizer(
            list(run.prompts), padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            output = model.get_text_features(**words.to(device))
        features = output if isinstance(output, Tensor) else output.pooler_output
        return {"text": torch.nn.functional.normalize(features.float(), dim=1).cpu()}

    def losses(self, seen: Tensor, wanted: dict[str, Tensor]) -> Tensor:
        return -(seen * wanted["text"]).sum(1)


GOALS: dict[str, type[Goal]] = {
    kind.name: kind for kind in (Latents, Embedding, Distribution, Score)
}


def goal_of(name: str | Goal, pipe: Pipeline, encoder: str | Encoder | None = None) -> Goal:
    """A goal by its name: latents, embedding, embedding+distribution or score.

    The encoder is `encoder_for`'s. Raises WrongUse for an unknown name.
    """
    if isinstance(name, Goal):
        return name
    check(name in GOALS, "goal", name, f"use one of {', '.join(GOALS)}")
    kind: Any = GOALS[name]
    if kind is Latents:
        return kind()
    known = encoder_for(pipe, encoder)
    if kind is Score:
        own = known.name in BUNDLED or known.name == "bundled"
        return Score(known, clip=None if own else known.name)
    return kind(known)
