"""Goals: what a grid's pictures are compared by.

Nearness in latents is the goal of a faithful preview. A grid can end nearer to the fine solution
and draw worse pictures, by attributes that a judge reads: an image encoder's embedding ranks grids
more as KID does (page "Nearer is not better").
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from asddim_lib.digest import of_values
from asddim_lib.errors import WrongUse, check
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.metrics.encoders import Encoder, embed, encoder_for
from asddim_lib.models.load import Pipeline
from asddim_lib.pipeline.run import Run, out_of_memory

#: What is seen in pictures: `seen` (n × d), and `checked` by a second encoder, if there is one.
Seen = dict[str, Tensor]


class Goal(ABC):
    """What is seen in a picture, and how far it is from the same of the fine one: lower is better.

    A new goal defines `name` and `look`, and `losses` where they are no distances; its object is
    given to `tune`.
    """

    name: ClassVar[str]
    #: Whether losses are distances, whose logarithms are averaged: a few pictures that come out as
    #: another scene weigh less.
    relative: ClassVar[bool] = True
    #: What sees the pictures, if it is an encoder, and the second one that checks a win.
    encoder: Encoder | None = None
    check: Encoder | None = None

    @property
    def identity(self) -> str:
        """A hash of all that `look` depends on beside the run and its steps."""
        return of_values(self.name)

    @abstractmethod
    def look(self, run: Run, steps: int) -> Seen:
        """What is seen in the pictures that the run's scheduler draws in K steps."""

    def losses(self, seen: Tensor, fine: Tensor) -> Tensor:
        """One number per picture (n) from what was seen in it (n × d): its `relative_distance`.

        `fine` (N × d) is the same of all the fine pictures, of which the first n are of the same
        prompts and noise. The unit is the spread of all of them.
        """
        rest = fine[len(seen) :]
        return relative_distance(torch.cat([seen, rest]), fine)[: len(seen)]


class Latents(Goal):
    """The final latents: the nearest grid shows the composition that many steps would give."""

    name = "latents"

    @torch.no_grad()
    def look(self, run: Run, steps: int) -> Seen:
        how = {"num_inference_steps": steps, "output_type": "latent"}
        ends = [
            run.call(batch, run.scheduler, run.generators(batch), **how).flatten(1)
            for batch in run.batches()
        ]
        return {"seen": torch.cat(ends).float().cpu()}


@dataclass(frozen=True)
class Embedding(Goal):
    """An image encoder's embeddings; the encoder `check` sees the same pictures."""

    encoder: Encoder
    check: Encoder | None = None
    name = "embedding"

    @property
    def identity(self) -> str:
        return of_values(self.name, [one.identity for one in (self.encoder, self.check) if one])

    def look(self, run: Run, steps: int) -> Seen:
        drawn = run.pictures(num_inference_steps=steps)
        looks = {"seen": embedded(self.encoder, drawn.images)}
        if self.check is not None:
            looks["checked"] = embedded(self.check, drawn.images)
        for part in looks.values():  # a failed picture is black, which an encoder would accept
            part[~drawn.finite] = torch.nan
        return looks


def embedded(encoder: Encoder, images: Tensor) -> Tensor:
    """The embeddings (n × d, on the CPU) of pictures (n × 3 × h × w, uint8).

    Raises WrongUse where the memory does not suffice.
    """
    try:
        return embed(encoder, images, 64)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        remedy = "take a smaller one, or load it on another device: load_encoder(name, device)"
        large = f"encoder is {encoder.name!r}, for which the memory does not suffice; {remedy}"
        raise WrongUse(large) from error


#: The goals by name.
GOALS = (Embedding.name, Latents.name)


def goal_of(
    goal: str | Goal,
    pipe: Pipeline,
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
) -> Goal:
    """The goal that is given, or the one of a name, embedding or latents.

    Encoders are `encoder_for`'s; without a `check_encoder` there is no second one. Raises WrongUse
    for an unknown name, an encoder that the goal does not use, and a second one that is the first.
    """
    known = isinstance(goal, Goal) or goal in GOALS
    check(known, "goal", goal, f"use one of {', '.join(GOALS)}")
    if goal != Embedding.name:
        for argument, one in (("encoder", encoder), ("check_encoder", check_encoder)):
            remedy = "it is for goal 'embedding' alone: leave it out, or give that name"
            check(one is None, argument, getattr(one, "name", one), remedy)
        return Latents() if isinstance(goal, str) else goal
    first = encoder_for(pipe, encoder)
    second = None if check_encoder is None else encoder_for(pipe, check_encoder)
    same = second is not None and second.name == first.name
    check(
        not same, "check_encoder", first.name, "it is the goal's encoder: name one of another kind"
    )
    return Embedding(first, second)
