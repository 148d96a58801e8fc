"""Prompts: the bundled captions, MS-COCO 2017, DrawBench, or any file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asddim_lib.errors import check
from asddim_lib.files import CACHE
from asddim_lib.models.load import data_folder

BUNDLED = {"bundled": "prompts.csv", "bundled-tune": "prompts_tune.csv"}
#: Sets that are fetched once: each one's file in the cache, and where it comes from.
REMOTE = {
    "coco": (
        "captions_val2017.json",
        "fetch http://images.cocodataset.org/annotations/annotations_trainval2017.zip, and unpack its annotations/captions_val2017.json there, or give its path",
    ),
    "drawbench": (
        "drawbench.csv",
        "fetch https://docs.google.com/spreadsheets/d/1y7nAbmR4FREi6npB1u-Bo3GFdwdOPYJc617rBOxIRHY/gviz/tq?tqx=out:csv to there, or give the path of your copy",
    ),
}
READERS: dict[str, Any] = {
    ".csv": lambda path: pd.read_csv(path, keep_default_na=False),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False, convert_dates=False),
    ".parquet": pd.read_parquet,
}
#: What sets call the column of prompts.
NAMES = ("prompt", "prompts", "caption", "text")


def load_prompts(
    source: str | os.PathLike = "bundled", count: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """The first `count` prompts of a set, one a row, in the column `prompt`; the set's other columns, such as `category`, beside them.

    `source` is bundled (1,000, for reporting), bundled-tune (256 others, for choosing settings), coco or drawbench, or a file: MS-COCO's
    captions (.json), a table (.csv, .tsv, .jsonl, .parquet) with a column prompt, prompts, caption or text, or a text with one prompt a line.
    Of MS-COCO, images are taken in a random order that `seed` fixes, each with its first caption; more of them begin with the same ones.
    Where the prompts come from is in the table's `attrs`. Raises ValueError for a file that is missing or unreadable, a missing column or too
    few prompts.
    """
    name, how = str(source), f"use one of {', '.join((*BUNDLED, *REMOTE))}, or the path of a file"
    path = Path(source)
    if name in BUNDLED:
        path = data_folder() / BUNDLED[name]
    elif name in REMOTE:
        path, how = CACHE / REMOTE[name][0], REMOTE[name][1]
        name = f"{name}, which is not at {path}" if not path.is_file() else name
    check(path.is_file(), "prompts", name, how)
    try:
        table = (
            _coco(path, seed) if path.suffix == ".json" else READERS.get(path.suffix, _lines)(path)
        )
    except (ValueError, KeyError, TypeError) as error:  # JSON's, pandas' and Arrow's
        raise ValueError(
            f"prompts is {source}, which could not be read as {path.suffix or 'text'} ({str(error).splitlines()[0]}); fetch it again"
        ) from error
    table = table.rename(
        columns={
            column: str(column).strip().lower()
            for column in table
            if str(column).strip().lower() in (*NAMES, "category")
        }
    )
    held = next((column for column in NAMES if column in table), None)
    check(
        held is not None,
        "prompts",
        name,
        f"the file needs a column named {', '.join(NAMES[:-1])} or {NAMES[-1]}",
    )
    table = table.rename(columns={held: "prompt"})
    check(
        count is None or 1 <= count <= len(table),
        "count",
        count,
        f"{source} has {len(table)} prompts",
    )
    table = table.head(count)
    table.attrs = {
        "prompts_from": str(source) if str(source) in (*BUNDLED, *REMOTE) else path.name,
        "prompts_seed": seed if path.suffix == ".json" else None,
    }
    return table


def _coco(path: Path, seed: int) -> pd.DataFrame:
    """One caption an image, the one of the lowest id, images in a random order."""
    found = pd.DataFrame(json.loads(path.read_text())["annotations"])[["image_id", "id", "caption"]]
    one = found.sort_values(["image_id", "id"]).drop_duplicates("image_id")
    one["caption"] = one["caption"].str.split().str.join(" ")  # some end in a line break
    return (
        one.iloc[np.random.default_rng(seed).permutation(len(one))]
        .drop(columns="id")
        .reset_index(drop=True)
    )


def _lines(path: Path) -> pd.DataFrame:
    return pd.DataFrame(
        {"prompt": [line for line in path.read_text().splitlines() if line.strip()]}
    )


def check_prompts(reader: Any, prompts: list[str]) -> None:
    """Raises ValueError for a prompt that is empty, or longer than the tokenizer of `reader`, a pipeline or a processor, takes."""
    tokenizer: Any = reader.tokenizer
    for prompt in prompts:
        check(
            isinstance(prompt, str) and bool(prompt.strip()),
            "prompt",
            repr(prompt),
            "give a text with at least one word",
        )
        length, limit = len(tokenizer.tokenize(prompt)) + 2, tokenizer.model_max_length
        check(
            length <= limit,
            "prompt",
            f"{prompt!r}, {length} tokens",
            f"shorten it to {limit} (a word the model does not know costs several)",
        )
