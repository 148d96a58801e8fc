"""Thirty printed claims, computed once more from the records, without the library.

They were drawn by `python -m tests.claims`: sentences of the pages that read records, with a number
in them, in the order of a seeded permutation. Passed over were sentences about theory, about the
paper's figures or about settings, and three about a density, which takes the model's noise levels
to read. The draw was from the pages of commit 8700c4f: a changed page changes the order.

Nothing of asddim_lib, experiments or book is imported: numpy, pandas and scipy alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
CELL = ["guidance_scale", "steps"]
THOUSAND = ("pictures/thousand", "pictures/twenty")
QUALITY = ["leading", "beta", "gits", "equidistributed", "chosen"]
CATEGORIES = ("colours", "counting", "positional", "unusual")
#: Each claim: the page, the sentence, and the function that returns whether it is true.
CLAIMS: list[tuple[str, str, Callable[[], bool]]] = []


def claim(page: str, sentence: str) -> Callable:
    """Registers a function that returns whether the sentence of a page is true."""

    def register(function: Callable[[], bool]) -> Callable[[], bool]:
        CLAIMS.append((page, sentence, function))
        return function

    return register


@cache
def records(name: str) -> pd.DataFrame:
    """Rows of results/NAME, with the text of each prompt of the reporting list."""
    table = pd.read_parquet(RESULTS / name / "records.parquet")
    if "prompt" not in table:
        texts = records("guidance-plans/thousand/unet").drop_duplicates("index")
        table["prompt"] = table["index"].map(texts.set_index("index")["prompt"])
    return table


def several(*names: str) -> pd.DataFrame:
    return pd.concat([records(name) for name in names], ignore_index=True)


def read_json(name: str) -> dict:
    return json.loads((ROOT / name).read_text())


def interval(values: pd.Series, texts: pd.Series) -> tuple[float, float, float]:
    """Mean, half-width of its 95 % interval, p-value; pictures of one text are a cluster."""
    mean = values.mean()
    sums = (values - mean).groupby(texts.to_numpy()).sum()
    count = len(sums)
    error = np.sqrt(count / (count - 1) * (sums**2).sum()) / len(values)
    p_value = 2 * stats.t.sf(abs(mean) / error, count - 1) if error else 1.0
    return mean, stats.t.ppf(0.975, count - 1) * error, p_value


def change(new: pd.DataFrame, old: pd.DataFrame, column: str, ratio: bool = False):
    """The interval of new minus old over the same pictures; of logarithms with `ratio`."""
    both = new.merge(old, on=[*CELL, "index", "prompt"] if "steps" in new else ["index", "prompt"])
    a, b = (both[f"{column}_{side}"].astype(float) for side in "xy")
    return interval(np.log(a / b) if ratio else a - b, both["prompt"])


def verdicts(table, pairs, column, lower=True, ratio=False) -> pd.DataFrame:
    """Each pair's change in each cell, with a verdict by Holm's correction over all rows."""
    rows = []
    for new, old in pairs:
        for cell, part in table.groupby(CELL):
            a, b = (part[part["method"] == name] for name in (new, old))
            if len(a) and len(b):
                rows.append((*cell, new, old, *change(a, b, column, ratio)))
    out = pd.DataFrame(rows, columns=[*CELL, "method", "against", "mean", "half", "p"])
    order, corrected, most = np.argsort(out["p"]), np.empty(len(out)), 0.0
    for rank, row in enumerate(order):
        most = max(most, (len(out) - rank) * out["p"][row])
        corrected[row] = min(most, 1)
    good = (out["mean"] < 0) == lower
    shown = (corrected < 0.05) & (out["mean"].abs() > out["half"])
    return out.assign(verdict=np.where(shown, np.where(good, "win", "loss"), "tie"))


def against_even(table: pd.DataFrame, names: list[str], column: str, **how) -> pd.DataFrame:
    return verdicts(table, [(name, "trailing") for name in names], column, **how)


def points(found: tuple, digits: int = 0) -> str:
    """A difference of shares and its half-width, in points, as pages print them."""
    return f"{100 * found[0]:.{digits}f} ± {100 * found[1]:.{digits}f}"


def of(table: pd.DataFrame, **values) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


@claim("second", "Karras' grid, a usual choice, draws 60 ± 7 points fewer in five.")
def karras():
    table = of(records("pictures/second-order"), steps=5)
    pair = [of(table, method=name) for name in ("trailing", "karras")]
    return points(change(*pair, "right_all")) == "60 ± 7"


@claim(
    "capped",
    "With 2M in 5 and 8 steps KID is lowest with $c=2$, and no other cap draws more correct "
    "pictures; in 20 steps of the flow model every cap raises KID.",
)
def caps_of_2m():
    for model in ("unet", "flow"):
        table = records(f"guidance-plans/choice/{model}-2m")
        means = table.groupby(["steps", "guidance_plan"])[["right_all", "kid_share"]].mean()
        for count in (5, 8):
            if means.loc[count, "kid_share"].idxmin() != "capped-2":
                return False
            right = means.loc[count, "right_all"]
            if right["capped-2"] < right.max():  # an exact tie is "no more"
                return False
    kid = means.loc[20, "kid_share"]
    return len(kid) == 4 and kid.idxmin() == "constant"


@claim(
    "judging",
    "In 50 steps, at guidance 3 and 6, the UNet draws 86.5 to 96.5 % right pictures by category "
    "and the flow model 82.5 to 94.5 %.",
)
def by_category():
    spans = []
    for name, scale in (("quality", 3), ("quality_flow", 6)):
        said = read_json(f"data/{name}.json")["generation"]
        values = [100 * said[f"{one}: all"] for one in CATEGORIES]
        spans.append(f"{min(values):.1f} {max(values):.1f}")
        if (said["guidance_scale"], said["steps"]) != (scale, 50):
            return False
    return spans == ["86.5 96.5", "82.5 94.5"]


@claim(
    "local-error",
    "on the UNet at 7.5, in ten steps, `equidistributed` ends at half the distance of even steps",
)
def half_the_distance():
    table = of(records("compare/ddim"), guidance_scale=7.5, steps=10)
    means = table.groupby("method")["distance"].mean()
    return round(means["equidistributed"] / means["trailing"], 1) == 0.5


@claim(
    "nearer",
    "So `tune` compares logarithms, with which 47 of 52 comparisons need no more prompts than with "
    "plain distances.",
)
def logarithms():
    def needed(values):
        z, power = stats.norm.ppf([0.975, 0.8])
        spread = values.std() / abs(values.mean())
        return max(2, np.ceil(((z + power) * spread) ** 2 + z**2 / 2))

    fewer = []
    for _, part in records("pictures/bundled").groupby("steps"):
        wide = part.pivot(index="index", columns="method", values="embedding")
        for name in wide.columns.drop("trailing"):
            a, b = wide[name], wide["trailing"]
            fewer.append(needed(np.log(a / b)) <= needed(a - b))
    return (sum(fewer), len(fewer)) == (47, 52)


@claim(
    "nearer",
    "Pooled over 5, 8, 10 and 20 steps, the nearest, which a search returned (`tuned`), draws 1.1 "
    "± 0.8 points fewer.",
)
def tuned_pooled():
    table = several(*THOUSAND)
    five = of(table, steps=5).groupby("method")["distance"].mean()
    pair = [of(table, method=name) for name in ("trailing", "tuned")]
    counts = sorted(pair[1]["steps"].unique()) == [5, 8, 10, 20]
    return (
        counts
        and five.idxmin() == "tuned"
        and points(change(*pair, "right_all"), 1) == ("1.1 ± 0.8")
    )


@claim(
    "judging",
    "The flow model is 12 points behind in counting: asked for three things, it sometimes draws "
    "four.",
)
def counting():
    unet, flow = (read_json(f"data/{n}.json")["generation"] for n in ("quality", "quality_flow"))
    return f"{100 * (unet['counting: all'] - flow['counting: all']):.0f}" == "12"


@claim(
    "nearer",
    "at guidance 7.5 in ten steps, `equidistributed` ends nearer and draws 14 ± 7 points fewer "
    "right pictures.",
)
def nearer_and_fewer():
    cell, names = {"guidance_scale": 7.5, "steps": 10}, ("trailing", "equidistributed")
    far = [of(records("compare/ddim"), method=name, **cell) for name in names]
    right = [of(records("compare/quality"), method=name, **cell) for name in names]
    gained, half, _ = change(*far, "distance")
    return gained > half and points(change(*right, "right_all")) == "14 ± 7"


@claim(
    "second",
    "In five steps the largest addition is 2.5 times the smallest on even steps, 4.9 times on "
    "`dual-weighted`, and 21 times on `equidistributed`.",
)
def additions():
    table = of(pd.read_csv(RESULTS / "compare/carried.csv"), steps=5)
    size = table.groupby(["grid", "step"])["size"].mean().groupby("grid")
    times = size.max() / size.min()
    text = f"{times['trailing']:.1f} {times['dual-weighted']:.1f} {times['equidistributed']:.0f}"
    return text == "2.5 4.9 21"


@claim(
    "nearer",
    "With five steps its last step begins at timestep 442, where even steps begin theirs at 199, "
    "so that one step has to draw all detail.",
)
def last_step():
    grids = read_json("results/compare/quality/provenance.json")["grids"]
    names = ("equidistributed", "trailing")
    return [grids[f"{name}-ddim-g7.5-k5"][-1] for name in names] == [442, 199]


@claim(
    "judging",
    "At guidance 3 even steps draw 89 to 91 % right pictures, close to the judge's 96 %.",
)
def little_room():
    even = of(several(*THOUSAND), method="trailing", guidance_scale=3)
    right = (100 * even.groupby("steps")["right_all"].mean()).round()
    judge = read_json("data/quality.json")["judge_accuracy_10000"]["all"]
    return (right.min(), right.max(), round(100 * judge)) == (89, 91, 96)


@claim("capped", "At scale 3 it ties, but for a higher CLIP score in five steps.")
def ties_at_three():
    for model in ("unet", "flow"):
        table = records(f"guidance-plans/others/{model}-2m")
        table = table.assign(method=table["guidance_plan"])
        for column, lower in (("right_all", False), ("kid_share", True), ("clip", False)):
            found = verdicts(table, [("capped-2", "constant")], column, lower)
            found = of(found, guidance_scale=3).set_index("steps")["verdict"].to_dict()
            if found != {5: "win" if column == "clip" else "tie", 20: "tie"}:
                return False
    return True


@claim(
    "clock",
    "A profile of 16 prompts with two adjoint probes takes 14,560, or 364 such pictures, and as "
    "many on the flow model.",
)
def cost_of_a_profile():
    cost = pd.read_csv(RESULTS / "compare/cost.csv").set_index("grid")["evaluations"]
    models = of(pd.read_csv(RESULTS / "compare/models.csv"), grid="dual-weighted")
    both = [*models["evaluations"], cost["dual-weighted (16, 64, 2 probes)"]]
    return set(both) == {14_560} and len(both) == 3 and 14_560 / (2 * 20) == 364


@claim(
    "nearer",
    "At guidance 3 in five steps it draws 8 points fewer right pictures, at 7.5 in ten steps 8 "
    "points more.",
)
def leading_twice():
    changes = []
    for name, scale, count in (("pictures/thousand", 3, 5), ("compare/quality", 7.5, 10)):
        table = of(records(name), guidance_scale=scale, steps=count)
        pair = [of(table, method=one) for one in ("leading", "trailing")]
        changes.append(round(100 * change(*pair, "right_all")[0]))
    return changes == [-8, 8]


@claim("second", "With `feature-weighted` 13 ± 8 points fewer pictures are correct in five steps.")
def fewer_on_the_flow_model():
    table = of(records("pictures/searched-flow"), steps=5)
    pair = [of(table, method=name) for name in ("trailing", "feature-weighted")]
    return points(change(*pair, "right_all")) == "13 ± 8"


@claim(
    "nearer",
    "On 256 pictures `feature-weighted` ends nearer than even steps by the embedding at every "
    "number of steps.",
)
def nearer_by_the_embedding():
    table = records("pictures/bundled")
    names = [name for name in table["method"].unique() if name != "trailing"]
    found = against_even(table, names, "embedding", ratio=True)
    shown = of(found, method="feature-weighted")["verdict"].tolist()
    return table["index"].nunique() == 256 and shown == ["win"] * 4


@claim(
    "evaluations",
    "By KID it wins over constant guidance by DDIM in 10, 16 and 20 evaluations (−398 ± 129, "
    "−234 ± 75 and −125 ± 44).",
)
def recipes_against_ddim():
    found = recipe_verdicts("unet", ["candidate", "interval"], ["second order"])
    found = of(found, method="second order", against="constant").set_index("steps")
    texts = recipe_texts(found, 10, 16, 20)
    return texts == ["-398 ± 129", "-234 ± 75", "-125 ± 44"] and (
        found["verdict"].tolist() == ["win"] * 3
    )


def recipe_verdicts(model, against_both, against_first=()):
    pairs = [(a, b) for b in ("constant", "second order") for a in against_both]
    pairs += [(one, "constant") for one in against_first]
    table = records(f"recipes/thousand/{model}").assign(guidance_scale=1.0)
    return verdicts(table, pairs, "kid_share")


def recipe_texts(found, *counts):
    return [f"{found['mean'][k]:.0f} ± {found['half'][k]:.0f}" for k in counts]


@claim("nearer", "The map compares 19 grids on 64 prompts, by DDIM.")
def the_map():
    table = records("compare/ddim")
    sizes = table["method"].nunique(), table["index"].nunique()
    return sizes == (19, 64) and set(table["solver"]) == {"ddim"}


@claim(
    "nearer",
    "A search without a budget (`direct`, in five steps) ends at distances that `chosen` exceeds "
    "by at most 10 %.",
)
def without_a_budget():
    table = of(records("compare/direct"), steps=5)
    means = table.groupby([*CELL, "method"])["distance"].mean().unstack()
    return round((means["chosen"] / means["direct"]).max(), 2) == 1.10


@claim("clock", "The searches of {doc}`second` took 44,764 to 121,864, or 1,119 to 3,047.")
def searches():
    spent = []
    for part in ("thousand", "twenty", "second-order", "searched-flow"):
        tried = read_json(f"results/pictures/{part}/provenance.json")["tried"]
        spent += [one["tuned"]["evaluations"] for one in tried.values()]
    ends = min(spent), max(spent)
    return ends == (44_764, 121_864) and [round(one / 40) for one in ends] == [1119, 3047]


@claim(
    "second",
    "On tuning prompts in 20 steps, KID was lowest at that scale, and no other drew more correct "
    "pictures.",
)
def scale_of_the_flow_model():
    table = of(pd.read_parquet(RESULTS / "tune-flow/records.parquet"), steps=20)
    means = table.groupby("guidance_scale")[["right_all", "kid_share"]].mean()
    return means["kid_share"].idxmin() == 6 and means["right_all"][6] == means["right_all"].max()


@claim(
    "second",
    "In ten steps at 7.5 `leading`, which begins at less noise, draws the most on the UNet.",
)
def leading_draws_the_most():
    table = of(records("pictures/guidance"), guidance_scale=7.5, steps=10)
    means = table.groupby("method")["right_all"].mean()
    return len(means) == 7 and means.idxmax() == "leading"


@claim(
    "nearer",
    "No distance ranks the 8 as right pictures do (below 0.36 at every number of steps).",
)
def ranks():
    table = records("pictures/thousand")
    means = table.groupby(["steps", "method"])[["distance", "embedding", "right_all"]].mean()
    rho = [
        stats.spearmanr(-part[goal], part["right_all"]).statistic
        for _, part in means.groupby("steps")
        for goal in ("distance", "embedding")
    ]
    return table["method"].nunique() == 8 and max(rho) < 0.36


@claim(
    "use",
    "at 7.5, DDIM's `leading`, which begins below pure noise, gets more pictures right in 10 and "
    "20 steps than `trailing`;",
)
def leading_at_strong_guidance():
    found = against_even(records("compare/quality"), QUALITY, "right_all", lower=False)
    found = of(found, method="leading", guidance_scale=7.5).set_index("steps")["verdict"]
    return found[[10, 20]].tolist() == ["win", "win"]


@claim(
    "evaluations",
    "are better still on the flow model in 10 and 16: −322 ± 115 and −135 ± 81 against constant "
    "guidance.",
)
def recipes_on_the_flow_model():
    found = recipe_verdicts("flow", ["candidate", "interval", "capped"])
    found = of(found, method="candidate", against="constant").set_index("steps")
    won = found["verdict"][[10, 16]].tolist() == ["win", "win"]
    return won and recipe_texts(found, 10, 16) == ["-322 ± 115", "-135 ± 81"]


@claim(
    "second",
    "Its KID ties with that of `feature-weighted`, and pooled over the four numbers of steps it "
    "draws 1.1 ± 0.8 points fewer correct pictures than even steps.",
)
def tuned_ties():
    table = several(*THOUSAND)
    found = verdicts(table, [("tuned", "feature-weighted")], "kid_share")
    return found["verdict"].tolist() == ["tie"] * 4 and tuned_pooled()


@claim("nearer", "14 ties and 10 losses in 24 settings.")
def another_time():
    told = pd.read_csv(RESULTS / "compare/told.csv")
    shown = (told["p_adjusted"] < 0.05) & (told["difference"].abs() > told["half"])
    worse = shown & (told["difference"] > 0)
    return (len(told), worse.sum(), (~shown).sum()) == (24, 10, 14)


@claim("second", "(`python -m tests.carried`, 8 prompts)")
def eight_prompts():
    return pd.read_csv(RESULTS / "compare/carried.csv")["prompt"].nunique() == 8


@claim(
    "evaluations",
    "On the flow model the search returned SDXL's interval in 10 and 16 evaluations and the cap in "
    "20.",
)
def returned_recipes():
    texts = []
    for count in (10, 16, 20):
        said = read_json(f"results/recipes/flow/{count}/tune.json")["value"]
        texts.append(said["recipes"][said["returned"]])
    interval = "guided below σ = 5.4, guided above σ = 0.28"
    return all(text.endswith(interval) for text in texts[:2]) and (
        texts[2] == "10 steps, scale 6, capped at c = 2"
    )


@claim(
    "nearer",
    "by right pictures, four grids against even steps in six cells each have no win, 21 ties and 3 "
    "losses.",
)
def same_noise():
    found = against_even(records("compare/quality"), QUALITY, "right_all", lower=False)
    found = found[found["method"] != "leading"]["verdict"].value_counts()
    return found.to_dict() == {"tie": 21, "loss": 3}


def sentences() -> Iterator[tuple[str, str]]:
    """The sentences with a digit, of the README and of each page that reads records."""
    for page in [ROOT / "README.md", *sorted((ROOT / "book/chapters").glob("*.md"))]:
        text = page.read_text()
        if page.stem != "README" and not re.search("results|records|contest", text):
            continue
        for apart in (r"\A---.*?---\n", r"```.*?```", r"\$\$.*?\$\$"):
            text = re.sub(apart, "", text, flags=re.S)
        for part in re.split(r"\n\s*\n|\n(?=[-|:#0-9])", text):
            for one in re.split(r"(?<=[.:;!?])\s+(?=[A-Z(*`{$0-9])", " ".join(part.split())):
                if re.search(r"\d", re.sub(r"\{[a-z:]+\}`[^`]*`|\$[^$]*\$|`[^`]*`", "", one)):
                    yield page.stem, one


if __name__ == "__main__":
    every = list(sentences())
    for place in np.random.default_rng(31).permutation(len(every)):
        print(*every[place], sep=": ")
