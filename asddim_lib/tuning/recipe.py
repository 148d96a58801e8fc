"""A recipe: how a pipeline draws in N network evaluations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asddim_lib.cache import check_writable, write_whole
from asddim_lib.errors import WrongUse, check
from asddim_lib.guidance.plan import GuidancePlan
from asddim_lib.models.load import saved_scheduler

FILE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """A scheduler, its number of steps, the guidance scale, and when to guide.

    `name` says it in words. `rows` is the number of network evaluations for one picture.
    `guidance_scale` is None where the pipeline's call has no such argument; the plan then has the
    scale. `scheduler` is for `pipe.scheduler`.
    """

    name: str
    steps: int
    guidance_scale: float | None
    plan: GuidancePlan
    rows: int
    scheduler: Any = field(compare=False, repr=False)

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline's call."""
        scale = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        return {"num_inference_steps": self.steps, **scale}

    def apply(self, pipe: Any) -> dict[str, Any]:
        """Sets the scheduler, puts on the plan, and returns the arguments of the call.

        `pipe(prompt, **recipe.apply(pipe))` draws as was judged. Raises WrongUse as
        `GuidancePlan.apply`; the pipeline is then as before.
        """
        own = pipe.scheduler
        pipe.scheduler = type(self.scheduler).from_config(self.scheduler.config)
        try:
            if self.plan != GuidancePlan.constant():
                self.plan.apply(pipe)
        except WrongUse:
            pipe.scheduler = own
            raise
        return self.call

    @contextmanager
    def on(self, pipe: Any) -> Iterator[dict[str, Any]]:
        """As `apply`, for the length of a with block. Then the pipeline is as before."""
        own = pipe.scheduler
        call = self.apply(pipe)
        try:
            yield call
        finally:
            if self.plan != GuidancePlan.constant():
                GuidancePlan.remove(pipe)
            pipe.scheduler = own

    def save(self, folder: str | os.PathLike) -> None:
        """Writes scheduler/, guidance_plan.json and recipe.json into a folder."""
        place = Path(folder)
        check_writable("folder", place)
        self.scheduler.save_pretrained(place / "scheduler")
        self.plan.save(place)
        said = {"name": self.name, "rows": self.rows, **self.call}
        content = json.dumps(said, indent=2) + "\n"
        write_whole(place / FILE, lambda part: part.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Recipe:
        """The recipe that `save` wrote. Raises WrongUse where there is none, or a damaged one."""
        file = Path(folder) / FILE
        check(file.is_file(), "folder", folder, f"it has no {FILE}: give one that `save` wrote to")
        plan, scheduler = GuidancePlan.load(folder), saved_scheduler(folder, "folder")
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            scale = said.get("guidance_scale")
            return cls(
                said["name"], said["num_inference_steps"], scale, plan, said["rows"], scheduler
            )
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise WrongUse(f"{FILE} is damaged ({error}); save the recipe again") from error
