"""What a search for a recipe returns, and its page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from asddim_lib.cache import check_writable, seal, unseal, write_whole
from asddim_lib.errors import check
from asddim_lib.tuning.acceptance import Pair
from asddim_lib.tuning.recipe import Recipe
from asddim_lib.tuning.verify import CANDIDATE, CURRENT

RESULT, REPORT = "tune.json", "report.md"
#: Network evaluations of a guided picture of 20 steps.
PICTURE = 40
#: What a search may aim at: pictures that are better, or as good for fewer evaluations.
BETTER, CHEAPER = "better", "cheaper"


@dataclass(frozen=True)
class Outcome:
    """What `find_recipe` returns: a `recipe`, the one that was proposed, and why.

    `returned` is "candidate", a baseline's name or "current". `recipes` are all that were compared,
    by these names. `losses` are the means, by measure, of those that were judged, and `halves` the
    half-widths of the means' 95 % intervals. `prompts` distinct ones served the verdict alone.
    `evaluations` were made in all. `wanted` says with which pictures drawn ones were compared.
    """

    recipe: Recipe
    returned: str
    recipes: dict[str, Recipe]
    pairs: list[Pair]
    losses: dict[str, dict[str, float]]
    halves: dict[str, dict[str, float]]
    prompts: int
    evaluations: int
    wanted: str
    setting: dict[str, Any]

    @property
    def changed(self) -> bool:
        """Whether another recipe replaces the current setting."""
        return self.returned != CURRENT

    @property
    def cost_in_pictures(self) -> float:
        """The network evaluations, in guided pictures of 20 steps."""
        return self.evaluations / PICTURE

    def table(self) -> pd.DataFrame:
        """Each comparison that was made, in a row."""
        return pd.DataFrame([asdict(pair) for pair in self.pairs])

    def summary(self) -> str:
        """What is returned, and how sure that is, in a few sentences."""
        on = f"on {self.prompts} prompts that served no choice"
        if not self.changed:
            return f"Nothing changes: {on} no recipe is proven {self._aimed}."
        if self.setting["aim"] == CHEAPER:
            return f"{self.recipe.name} ({self.recipe.rows} evaluations): {on} {self._aimed}."
        over = "every baseline" if self.returned == CANDIDATE else "the current setting"
        text = f"{self.recipe.name} ({self.recipe.rows} evaluations): {on} it wins over {over}."
        if self.returned == CANDIDATE:
            return text
        if CANDIDATE not in self.recipes:
            return f"{text} It is a baseline, and the search found nothing better."
        tried = self.recipes[CANDIDATE].name
        return f"{text} It is a baseline; {tried} is not proven better than every one of them."

    @property
    def _aimed(self) -> str:
        """What a recipe has to be, in words."""
        if self.setting["aim"] != CHEAPER:
            return "better than the current setting"
        rows, margin = self.recipes[CURRENT].rows, self.setting["margin"]
        measures = ", ".join(self.losses[CURRENT])
        return (
            f"not worse than the current setting in {rows} evaluations, by more than {margin:g} "
            f"standard deviations of its pictures ({measures})"
        )

    def report(self, folder: str = "recipe") -> str:
        """A page in Markdown: the verdict, two lines of code, every comparison, the cost."""
        page = [f"# {self.setting['evaluations']} evaluations", self.summary()]
        code = f'call = Recipe.load("{folder}").apply(pipe)\nimage = pipe(prompt, **call).images[0]'
        page += ["## Use it", f"```python\nfrom asddim_lib import Recipe\n\n{code}\n```"]
        page += ["## Recipes", _table(self._rows())]
        if self.setting["aim"] == CHEAPER:
            page.append(
                "Not worse means: by these measures, on these prompts. Look at the pictures, too."
            )
        page += [
            "## Every comparison",
            "Losses are lower where pictures are better: the negative of a score, or a picture's "
            "part of KID. A change has a 95 % t interval over prompts. Win and loss are corrected "
            "over the measures of a pair (Holm); not worse is an interval below the margin.",
            _table(
                {
                    "recipe": pair.first,
                    "against": pair.second,
                    "measure": pair.measure,
                    "change": f"{pair.difference:+.3g} ± {pair.half:.2g}",
                    "verdict": pair.verdict,
                }
                for pair in self.pairs
            ),
            "## What it cost, and what it is for",
            f"As much as {self.cost_in_pictures:,.0f} guided pictures of 20 steps. "
            + ", ".join(f"{name} {value}" for name, value in self.setting.items() if value)
            + f". KID is the distance from: {self.wanted}. Fine detail (noise, blur) is compared "
            "with the model's own pictures of 20 steps and other noise.",
        ]
        return "\n\n".join(page) + "\n"

    def _rows(self) -> Any:
        for name, losses in self.losses.items():
            recipe = self.recipes[name]
            said = {"name": name, "recipe": recipe.name, "evaluations": recipe.rows}
            yield said | {key: f"{loss:.4g}" for key, loss in losses.items()}

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the recipe, tune.json with its hash, and report.md into a folder.

        Every recipe that was compared is in a folder of its name under recipes/, which an earlier
        search's recipes leave.
        """
        place = Path(folder)
        self.recipe.save(place)
        shutil.rmtree(place / "recipes", ignore_errors=True)
        for name, recipe in self.recipes.items():
            recipe.save(place / "recipes" / name.replace(" ", "-"))
        text = self.report(str(folder))
        write_whole(place / REPORT, lambda part: part.write_text(text, encoding="utf-8"))
        call = {"steps": self.recipe.steps, "guidance_scale": self.recipe.guidance_scale}
        said = {
            "asked": self.setting,
            "setting": {"model": self.setting["model"], **call},
            "returned": self.returned,
            "losses": self.losses,
            "halves": self.halves,
            "wanted": self.wanted,
            "evaluations": self.evaluations,
            "prompts": self.prompts,
            "recipes": {name: recipe.name for name, recipe in self.recipes.items()},
            "rows": {name: recipe.rows for name, recipe in self.recipes.items()},
            "pairs": [asdict(pair) for pair in self.pairs],
        }
        seal(place / RESULT, said)


def _table(rows: Any) -> str:
    table = list(rows)
    lines = ["| " + " | ".join(table[0]) + " |", "|" + " --- |" * len(table[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, r.values())) + " |" for r in table)])


def check_setting(folder: str | os.PathLike, setting: Mapping[str, Any]) -> Path:
    """A folder's path. Raises WrongUse where it cannot be written, or has another's result."""
    check(bool(str(folder)), "folder", "''", "name one")
    check_writable("folder", Path(folder))
    before = (unseal(Path(folder) / RESULT) or {"asked": setting}).get("asked")
    remedy = "it has the result of another setting: name another folder, or remove this one"
    check(before == setting, "folder", folder, remedy)
    return Path(folder)
