"""Goals: what a grid's pictures are compared by.

Nearness in latents is the goal of a faithful preview. A grid can end nearer to the fine solution
and draw worse pictures, by attributes that a judge reads: an image encoder's embedding ranks grids
more as that judge does (page "What should a grid be near to?").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from asddim_lib.errors import WrongUse, check
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.metrics.encoders import Encoder, embed, encoder_for
from asddim_lib.models.load import Pipeline
from asddim_lib.pipeline.manifest import of_values
from asddim_lib.pipeline.run import Run, out_of_memory

#: What is seen in pictures: `seen` (n × d), and `checked` by a second encoder, if there is one.
Seen = dict[str, Tensor]


class Goal(ABC):
    """What is seen in a picture, and how far it is from the same of the fine one: lower is better.

    A new goal defines `name`, `look` and `losses`; its object is given to `tune`.
    """

    name: ClassVar[str]
    #: Whether losses are distances, whose logarithms are averaged: a few pictures that come out as
    #: another scene weigh less.
    relative: ClassVar[bool] = False

    @property
    def identity(self) -> str:
        """A hash of all that `look` depends on beside the run and its steps."""
        return of_values(self.name)

    @abstractmethod
    def look(self, run: Run, steps: int) -> Seen:
        """What is seen in the pictures that the run's scheduler draws in K steps."""

    @abstractmethod
    def losses(self, seen: Tensor, fine: Tensor) -> Tensor:
        """One number per picture (n) from what was seen in it (n × d).

        `fine` (N × d) is the same of all the fine pictures, of which the first n are of the same
        prompts and noise.
        """


def distances(seen: Tensor, fine: Tensor) -> Tensor:
    """The `relative_distance` (n) of n pictures from the first of N fine ones.

    The unit is the spread of all fine pictures.
    """
    rest = fine[len(seen) :]
    return relative_distance(torch.cat([seen, rest]), fine)[: len(seen)]


class Latents(Goal):
    """The final latents: the nearest grid shows the composition that many steps would give."""

    name = "latents"
    relative = True

    @torch.no_grad()
    def look(self, run: Run, steps: int) -> Seen:
        how = {"num_inference_steps": steps, "output_type": "latent"}
        ends = [
            run.call(batch, run.scheduler, run.generators(batch), **how).flatten(1)
            for batch in run.batches()
        ]
        return {"seen": torch.cat(ends).float().cpu()}

    def losses(self, seen: Tensor, fine: Tensor) -> Tensor:
        return distances(seen, fine)


@dataclass(frozen=True)
class Embedding(Goal):
    """An image encoder's embeddings; the encoder `check` sees the same pictures."""

    encoder: Encoder
    check: Encoder | None = None
    batch: int = 64
    name = "embedding"
    relative = True

    @property
    def identity(self) -> str:
        encoders = [one for one in (self.encoder, self.check) if one is not None]
        return of_values(self.name, [one.identity for one in encoders])

    def look(self, run: Run, steps: int) -> Seen:
        drawn = run.pictures(num_inference_steps=steps)
        found = {"seen": self.embedded(drawn.images)}
        if self.check is not None:
            found["checked"] = self.embedded(drawn.images, self.check)
        for part in found.values():  # a picture that failed is black, and would pass for one
            part[~drawn.finite] = torch.nan
        return found

    def embedded(self, images: Tensor, encoder: Encoder | None = None) -> Tensor:
        """The embeddings (n × d, on the CPU) of pictures (n × 3 × h × w, uint8).

        They are the goal's encoder's, unless another is given. Raises WrongUse where the memory
        does not suffice.
        """
        sees = encoder or self.encoder
        try:
            return embed(sees, images, self.batch)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not out_of_memory(error):
                raise
            remedy = "take a smaller one, or load it on another device: load_encoder(name, device)"
            raise WrongUse(
                f"encoder is {sees.name!r}, for which the memory does not suffice; {remedy}"
            ) from error

    def losses(self, seen: Tensor, fine: Tensor) -> Tensor:
        return distances(seen, fine)


GOALS: dict[str, type[Goal]] = {kind.name: kind for kind in (Embedding, Latents)}


def goal_of(
    goal: str | Goal,
    pipe: Pipeline,
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
) -> Goal:
    """A goal by its name, embedding or latents, or the one that is given.

    The encoders are `encoder_for`'s; without a `check_encoder` there is no second one. Raises
    WrongUse for an unknown name, for an encoder that the goal makes no use of, and for a second one
    that is the first.
    """
    named = not isinstance(goal, Goal)
    check(not named or goal in GOALS, "goal", goal, f"use one of {', '.join(GOALS)}")
    kind = GOALS[goal] if isinstance(goal, str) else type(goal)
    for argument, one in (("encoder", encoder), ("check_encoder", check_encoder)):
        remedy = f"goal {kind.name} sees no pictures: leave it out, or use goal embedding"
        sees = one is None or issubclass(kind, Embedding)
        check(sees, argument, getattr(one, "name", one), remedy)
    remedy = "the goal that is given has one: leave it out, or give the goal's name"
    check(named or encoder is None, "encoder", getattr(encoder, "name", encoder), remedy)
    if not named:
        chosen = goal
    else:
        chosen = Embedding(encoder_for(pipe, encoder)) if kind is Embedding else kind()
    if check_encoder is None:
        return chosen  # type: ignore[return-value]
    assert isinstance(chosen, Embedding)
    second = encoder_for(pipe, check_encoder)
    remedy = "it is the goal's encoder: name one of another kind"
    check(second.name != chosen.encoder.name, "check_encoder", second.name, remedy)
    return replace(chosen, check=second)
