"""The frontier: what each number of network evaluations buys, and by which recipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from asddim_lib.cache import write_whole
from asddim_lib.tuning.measures import DISTANCES
from asddim_lib.tuning.outcome import Outcome
from asddim_lib.tuning.verify import CANDIDATE, CURRENT

#: The methods that are compared, in the order of their colours.
METHODS = (CURRENT, "constant", "second order", "capped", "interval", CANDIDATE)
NAME = "frontier"


def frontier(outcomes: Mapping[int, Outcome]) -> pd.DataFrame:
    """A row for each number of evaluations, recipe and measure.

    `value` is the measure's mean, ± `half` (95 %), on prompts that served no choice: of the
    `DISTANCES` lower is better, of every other measure higher. `returned` marks the recipe that the
    search returned, and `folder` is where `save` puts it.
    """
    rows = [
        {
            "evaluations": outcome.recipes[name].rows,
            "of": asked,
            "method": name,
            "recipe": outcome.recipes[name].name,
            "measure": measure,
            "value": loss if measure in DISTANCES else -loss,
            "half": outcome.halves[name][measure],
            "returned": name == outcome.returned,
            "folder": f"{asked}/recipes/{name.replace(' ', '-')}",
        }
        for asked, outcome in sorted(outcomes.items())
        for name, losses in outcome.losses.items()
        for measure, loss in losses.items()
    ]
    return pd.DataFrame(rows)


def plot(table: pd.DataFrame) -> Any:
    """A figure of the frontier: each measure against the evaluations, a line per method.

    Raises ImportError where matplotlib, by which pandas plots, is not installed.
    """
    measures = list(table["measure"].unique())
    methods = [name for name in METHODS if name in set(table["method"])]
    groups = [[f"{measure}, {name}" for name in methods] for measure in measures]
    labelled = table.assign(label=table["measure"] + ", " + table["method"])
    wide = labelled.pivot(index="of", columns="label", values=["value", "half"])
    columns = [label for group in groups for label in group]
    axes = wide["value"][columns].plot(
        subplots=groups,
        layout=(1, len(measures)),
        figsize=(4.4 * len(measures), 3.8),
        yerr=wide["half"][columns],
        color=[f"C{METHODS.index(name)}" for name in methods] * len(measures),
        style="o-",
        capsize=2,
        legend=False,
    )
    for axis, measure in zip(axes.flat, measures, strict=True):
        better = "lower" if measure in DISTANCES else "higher"
        axis.set(xlabel="network evaluations for a picture", xticks=wide.index)
        axis.set(title=measure, ylabel=f"{measure} ({better} is better)")
    axes.flat[0].legend(methods, fontsize="small")
    figure = axes.flat[0].figure
    figure.set_layout_engine("constrained")
    return figure


def save(outcomes: Mapping[int, Outcome], folder: str | os.PathLike) -> pd.DataFrame:
    """Writes every outcome into a folder of its number, and the frontier beside them.

    It is there as frontier.json, as frontier.md, and as frontier.png where matplotlib is installed.
    Returns the table.
    """
    place, table = Path(folder), frontier(outcomes)
    for asked, outcome in outcomes.items():
        outcome.save(place / str(asked))
    text = json.dumps(table.to_dict("records"), indent=2)
    write_whole(place / f"{NAME}.json", lambda part: part.write_text(text + "\n", encoding="utf-8"))
    page = _page(table, str(folder))
    write_whole(place / f"{NAME}.md", lambda part: part.write_text(page, encoding="utf-8"))
    try:
        figure = plot(table)
    except ImportError:
        return table
    write_whole(place / f"{NAME}.png", lambda part: figure.savefig(part, format="png", dpi=150))
    sys.modules["matplotlib.pyplot"].close(figure)  # pandas has loaded it
    return table


def _page(table: pd.DataFrame, folder: str) -> str:
    """The table in Markdown, a row per recipe, and how to use one."""
    shown = table.assign(
        shown=[f"{row.value:.4g} ± {row.half:.2g}" for row in table.itertuples()],
        method=table["method"] + table["returned"].map({True: " (returned)", False: ""}),
    )
    keys = ["of", "evaluations", "method", "recipe", "folder"]
    wide = shown.pivot(index=keys, columns="measure", values="shown").reset_index()
    names = [*keys, *table["measure"].unique()]
    rows = [names, ["---"] * len(names), *wide[names].astype(str).to_numpy().tolist()]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    code = (
        f'call = Recipe.load("{folder}/FOLDER").apply(pipe)\nimage = pipe(prompt, **call).images[0]'
    )
    return f"# The frontier\n\n{lines}\n\n```python\nfrom asddim_lib import Recipe\n\n{code}\n```\n"
