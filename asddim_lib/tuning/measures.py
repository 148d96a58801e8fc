"""What pictures of a recipe are judged by: their prompts, and a set of wanted pictures.

Nearness to many steps cannot choose a guidance scale: each scale has many steps of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from asddim_lib.digest import of_values
from asddim_lib.errors import check
from asddim_lib.metrics.clip import clip_cosine
from asddim_lib.metrics.detail import energy_shares, fine_detail
from asddim_lib.metrics.encoders import Encoder
from asddim_lib.metrics.kid import kid_shares
from asddim_lib.pipeline.run import Run
from asddim_lib.tuning.goals import Seen, embedded

#: Scores (n) of pictures (n × 3 × h × w, uint8) and their prompts. Higher is better.
Scorer = Callable[[Tensor, list[str]], Tensor]
#: The measures that every model has.
PROMPT, LIKENESS, DETAIL = "CLIP score", "KID", "fine detail"
#: Those that are distances; the others are scores, of which more is better.
DISTANCES = (LIKENESS, DETAIL)


@dataclass(frozen=True, eq=False)
class Measures:
    """The losses of pictures, one for each measure and picture: lower is better.

    - `clip`: bundled, or a CLIP model's folder or hub id. Its score says how well a picture fits
      its prompt.
    - `encoder`: its embeddings are compared with those of the wanted pictures, by KID. `check`, if
      there is one, takes its place in the verdict, so that it served no choice.
    - `scorers`: further measures by name, such as a preference model's.
    - `wanted`: the embeddings (m × d) of the wanted pictures, by "seen" and "checked", and the
      `fine_detail` of the pipeline's own slow ones. `asked` are these one's prompts.
    - `real`: whether the embeddings are those of real pictures, which have no prompts.
    """

    clip: str
    encoder: Encoder
    check: Encoder | None = None
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    wanted: dict[str, Tensor] = field(default_factory=dict)
    asked: Sequence[str] = ()
    real: bool = False

    @property
    def names(self) -> dict[str, str]:
        """What judges, in words."""
        checked = self.check.name if self.check else ""
        names = {"clip": self.clip, "encoder": self.encoder.name, "check_encoder": checked}
        return names | ({"scorers": ", ".join(self.scorers)} if self.scorers else {})

    @property
    def identity(self) -> str:
        """A hash of all that `look` depends on beside the run; of a scorer, its name alone."""
        encoders = [one.identity for one in (self.encoder, self.check) if one]
        return of_values("measures", DETAIL, self.clip, encoders, sorted(self.scorers))

    def look(self, run: Run, steps: int) -> Seen:
        """What is seen in the pictures that a run draws in K steps."""
        drawn, prompts = run.pictures(num_inference_steps=steps), list(run.prompts)
        still = drawn.images  # of a video, its middle frame
        still = still[:, still.shape[1] // 2] if still.ndim == 5 else still
        seen = {
            PROMPT: clip_cosine(still, prompts, self.clip, truncate=run.truncate),
            DETAIL: fine_detail(still.cpu()),
        }
        encoders = {"seen": self.encoder, "checked": self.check}
        seen |= {name: embedded(one, drawn.images) for name, one in encoders.items() if one}
        for name, score in self.scorers.items():
            seen[name] = torch.as_tensor(score(drawn.images, prompts), dtype=torch.float64)
            shape = tuple(seen[name].shape)
            check(shape == (len(prompts),), name, f"of shape {shape}", "give a score per picture")
        for part in seen.values():  # a failed picture is black, which an encoder would accept
            part[~drawn.finite] = torch.nan
        return seen

    def losses(self, seen: Sequence[Seen], prompts: Sequence[str], by: str) -> dict[str, Tensor]:
        """The losses (n, float64) by each measure, from what was seen in some batches.

        `by` is "seen" or "checked", whose embeddings are compared; the first, without a `check`.
        A picture is not compared with the wanted ones of its own prompt, which would be nearness.
        Raises WrongUse if one is not finite.
        """
        by = by if self.check is not None else "seen"
        found = {
            name: -torch.cat([part[name] for part in seen]).double()
            for name in (PROMPT, *self.scorers)
        }
        same = torch.tensor([[one == other for other in self.asked] for one in prompts])
        features = _scaled(torch.cat([part[by] for part in seen]))
        found[LIKENESS] = kid_shares(
            features, _scaled(self.wanted[by]), skip=None if self.real else same
        )
        detail = torch.cat([part[DETAIL] for part in seen])
        found[DETAIL] = energy_shares(detail, self.wanted[DETAIL], skip=same)
        for name, values in found.items():
            remedy = "the network gave numbers that are not finite: run it in float32"
            check(bool(values.isfinite().all()), name, "not finite", remedy)
        return found


def _scaled(embeddings: Tensor) -> Tensor:
    """Embeddings (n × d) of length 1 with a mean square of 1, which KID's kernel is made for."""
    return embeddings * embeddings.shape[1] ** 0.5
