"""Goals: what a grid's pictures are compared by.

Nearness in latents is the goal of a faithful preview. A grid can end nearer to the fine solution
and draw worse pictures, by attributes that a judge reads. An image encoder's embedding is another
goal. `experiment.agreement` says how well each ranks grids as a judge does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from asddim_lib.errors import WrongUse, check
from asddim_lib.grids.uniform import uniform
from asddim_lib.metrics.clip import load_clip, tokens
from asddim_lib.metrics.distance import relative_distance
from asddim_lib.metrics.encoders import Encoder, embed, encoder_for
from asddim_lib.metrics.intervals import Test
from asddim_lib.models.load import BUNDLED, Pipeline
from asddim_lib.pipeline.manifest import of_values
from asddim_lib.pipeline.run import Run, out_of_memory
from asddim_lib.schedulers.solvers import own_scheduler

#: Added to seeds for fine pictures of other noise.
OTHER_SEEDS = 10**6
#: What is looked at, by name: `seen` (n × d), and `checked` by a second encoder, if there is one.
Seen = dict[str, Tensor]


class Goal(ABC):
    """What of a picture is looked at, and how far it is from what is wanted: lower is better.

    A new goal defines `name`, `look` and `losses`, and hands its object to `tune`.
    """

    name: ClassVar[str]
    #: Whether fine pictures of other noise are wanted, too.
    others: ClassVar[bool] = False
    #: The test that compares losses in pairs; "t" where a loss means something by its mean alone.
    test: ClassVar[Test] = "wilcoxon"
    #: Whether losses are distances, of which logarithms are averaged: a few pictures that come out
    #: as another scene weigh less, and as many prompts tell more (page "What should a grid be near
    #: to?").
    relative: ClassVar[bool] = False

    @property
    def fine(self) -> bool:
        """Whether fine pictures of the prompts' own noise are wanted."""
        return True

    @property
    def identity(self) -> str:
        """A hash of all that `look` depends on beside run and grid."""
        return of_values(self.name)

    def check_prompts(self, run: Run) -> None:  # noqa: B027  most goals read none
        """Raises WrongUse for a prompt of a run that the goal cannot read."""

    @abstractmethod
    def look(self, run: Run, grid: Sequence[int]) -> Seen:
        """What is looked at in the pictures that a run draws on a grid."""

    @abstractmethod
    def losses(self, seen: Tensor, wanted: Seen) -> Tensor:
        """One number for each picture (n), by what was `seen` in it (n × d).

        They are averaged, or their logarithms where they are `relative`. `wanted` is of all prompts
        of a run, and the pictures are those of its first n.
        """

    def wanted(self, run: Run, steps: int) -> Seen:
        """What the pictures of a run's prompts should look like.

        That is what `look` gives of fine pictures, of `steps` even steps from the same noise, and
        for some goals `others` (n × d): the same of other noise.
        """
        found = self.look(fine_run(run), even(run, steps)) if self.fine else {}
        if self.others:
            assert run.seeds is not None
            elsewhere = replace(run, seeds=[seed + OTHER_SEEDS for seed in run.seeds])
            found["others"] = self.look(fine_run(elsewhere), even(run, steps))["seen"]
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


def apart(seen: Tensor, fine: Tensor) -> Tensor:
    """How far the first n pictures (n × d) lie from their fine ones (N × d, of all): shape (n,).

    That is `relative_distance`, whose unit is the spread of all the fine pictures.
    """
    rest = fine[len(seen) :]
    return relative_distance(torch.cat([seen, rest]), fine)[: len(seen)]


class Latents(Goal):
    """The final latents: the goal of a faithful preview.

    A grid that is nearest in them shows the composition that many steps would give.
    """

    name = "latents"
    relative = True

    def look(self, run: Run, grid: Sequence[int]) -> Seen:
        return {"seen": run.ends(grid)}

    def losses(self, seen: Tensor, wanted: Seen) -> Tensor:
        return apart(seen, wanted["seen"])


@dataclass(frozen=True)
class Embedding(Goal):
    """The distance of an image encoder's embeddings, relative to the spread of the fine ones.

    The encoder `check` sees the same pictures, for a verdict of its own.
    """

    encoder: Encoder
    check: Encoder | None = None
    batch: int = 64
    name = "embedding"
    relative = True

    @property
    def identity(self) -> str:
        parts = [self.encoder] if self.check is None else [self.encoder, self.check]
        known = [[one.name, dict(one.network.state_dict())] for one in parts]
        return of_values(self.name, self.fine, known)

    def look(self, run: Run, grid: Sequence[int]) -> Seen:
        drawn = run.pictures(grid)
        found = {"seen": self.embedded(drawn.images)}
        if self.check is not None:
            found["checked"] = self.embedded(drawn.images, self.check)
        for part in found.values():  # a picture that failed is black, and would pass for one
            part[~drawn.finite] = torch.nan
        return found

    def embedded(self, images: Tensor, encoder: Encoder | None = None) -> Tensor:
        """The embeddings (n × d, on the CPU) of pictures (n × 3 × h × w, uint8).

        They are the goal's encoder's, unless another is given. Raises WrongUse where the memory
        does not hold it.
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

    def losses(self, seen: Tensor, wanted: Seen) -> Tensor:
        return apart(seen, wanted["seen"])


@dataclass(frozen=True)
class Distribution(Embedding):
    """The embedding's distance, and how unlike the set of pictures is to fine ones of other noise.

    The second part is the squared MMD with KID's polynomial kernel k, unbiased: `weight` times it,
    in units of the fine pictures' own spread in that kernel. It is a property of the set. Picture
    i's share is ψᵢ = 2 mean_j k(xᵢ, xⱼ) − 2 mean_j k(xᵢ, yⱼ) − mean k(x, x') + mean k(y, y'), for
    pictures x and fine ones y. Their mean is the squared MMD, and their spread gives its standard
    error, as ψ is the statistic's first projection (Hoeffding 1948). GAS (2510.17699) finds such a
    term to matter little in its weight.
    """

    weight: float = 10.0
    name = "embedding+distribution"
    others = True
    relative = False
    test = "t"

    def losses(self, seen: Tensor, wanted: Seen) -> Tensor:
        fine, others = wanted["seen"], wanted["others"]
        own = _among(seen)
        shares = 2 * own - own.mean() - 2 * _kernel(seen, others).mean(1) + _among(others).mean()
        spread = _kernel(fine, fine).diagonal().mean() - _among(fine).mean()
        return super().losses(seen, wanted) + self.weight * shares / spread


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's kernel, (⟨x, y⟩ + 1)³, for embeddings of length 1."""
    return (x @ y.T + 1) ** 3


def _among(x: Tensor) -> Tensor:
    """The mean kernel of each row of x (n × d) with the other rows: shape (n,)."""
    kernel = _kernel(x, x)
    return (kernel.sum(1) - kernel.diagonal()) / (len(x) - 1)


@dataclass(frozen=True)
class Score(Embedding):
    """The CLIP score with the prompt, negative: only where a user asks for it by name.

    Such a score can be raised by pictures that are worse; give a `check` of another kind.
    """

    clip: str | None = None
    name = "score"
    relative = False

    @property
    def fine(self) -> bool:
        return self.check is not None

    def wanted(self, run: Run, steps: int) -> Seen:
        model, words = self._read(run)
        with torch.no_grad():
            output = model.get_text_features(**words)
        features = output if isinstance(output, Tensor) else output.pooler_output
        text = torch.nn.functional.normalize(features.float(), dim=1).cpu()
        return {**super().wanted(run, steps), "text": text}

    def check_prompts(self, run: Run) -> None:
        self._read(run)

    def _read(self, run: Run) -> tuple[Any, Any]:
        """CLIP, and a run's prompts as it takes them. Raises WrongUse as `tokens` does."""
        device = str(next(self.encoder.network.parameters()).device)
        model, processor = load_clip(self.clip, device)
        return model, tokens(model, processor, list(run.prompts), run.truncate).to(device)

    def losses(self, seen: Tensor, wanted: Seen) -> Tensor:
        return -(seen * wanted["text"][: len(seen)]).sum(1)


GOALS: dict[str, type[Goal]] = {
    kind.name: kind for kind in (Latents, Embedding, Distribution, Score)
}


def goal_of(
    name: str | Goal,
    pipe: Pipeline,
    encoder: str | Encoder | None = None,
    check_encoder: str | Encoder | None = None,
) -> Goal:
    """A goal by its name: latents, embedding, embedding+distribution or score.

    The encoders are `encoder_for`'s; without a `check_encoder` there is no second one. Raises
    WrongUse for an unknown name, for an encoder that the goal makes no use of, and for a second one
    that cannot check the first.
    """
    made = isinstance(name, Goal)
    check(made or name in GOALS, "goal", name, f"use one of {', '.join(GOALS)}")
    kind = type(name) if isinstance(name, Goal) else GOALS[name]
    remedy = f"goal {kind.name} sees no pictures: leave it out, or use goal embedding"
    for argument, one in (("encoder", encoder), ("check_encoder", check_encoder)):
        looks = one is None or issubclass(kind, Embedding)
        check(looks, argument, getattr(one, "name", one), remedy)
    own = getattr(encoder, "name", encoder)
    remedy = "the goal that is given has one: leave it out, or give the goal's name"
    check(encoder is None or not made, "encoder", own, remedy)
    goal = name if isinstance(name, Goal) else _named(kind, pipe, encoder)
    if check_encoder is None:
        return goal
    assert isinstance(goal, Embedding)
    second = encoder_for(pipe, check_encoder)
    another = second.name != goal.encoder.name
    remedy = "it is the goal's own: name an encoder of another kind"
    check(another, "check_encoder", getattr(check_encoder, "name", check_encoder), remedy)
    return replace(goal, check=second)


def _named(kind: Any, pipe: Pipeline, encoder: str | Encoder | None) -> Goal:
    """A goal of this class, with its encoder."""
    if kind is Latents:
        return kind()
    known = encoder_for(pipe, encoder)
    if kind is not Score:
        return kind(known)
    reads = hasattr(known.network, "get_text_features")
    check(reads, "encoder", known.name, "goal score compares pictures with words: give a CLIP")
    own = known.name in BUNDLED or known.name == "bundled"
    return Score(known, clip=None if own else known.name)
