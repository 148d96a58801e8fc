"""Prompts: the bundled captions, MS-COCO 2017, DrawBench, or any file."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from asddim_lib.cache import cache_folder
from asddim_lib.errors import WrongUse, check
from asddim_lib.models.load import data_folder

BUNDLED = {"bundled": "prompts.csv", "bundled-tune": "prompts_tune.csv"}
_COCO = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
_DRAWBENCH = (
    "https://docs.google.com/spreadsheets/d/1y7nAbmR4FREi6npB1u-Bo3GFdwdOPYJc617rBOxIRHY"
    "/gviz/tq?tqx=out:csv"
)
#: Sets that are fetched once: each one's file in the cache, and how to get it.
REMOTE = {
    "coco": (
        "captions_val2017.json",
        f"fetch {_COCO}, and unpack its annotations/captions_val2017.json there, or give its path",
    ),
    "drawbench": (
        "drawbench.csv",
        f"fetch {_DRAWBENCH} to there, or give the path of your copy",
    ),
}
READERS: dict[str, Any] = {
    ".csv": lambda path: pd.read_csv(path, keep_default_na=False),
    ".tsv": lambda path: pd.read_csv(path, sep="\t", keep_default_na=False),
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False, convert_dates=False),
    ".parquet": pd.read_parquet,
}
#: Names that sets give to the column of prompts.
NAMES = ("prompt", "prompts", "caption", "text")
#: The tokens that a pipeline keeps if neither it nor its tokenizer states a limit.
DEFAULT_TOKENS = 512


def load_prompts(
    source: str | os.PathLike = "bundled", count: int | None = None, seed: int = 0
) -> pd.DataFrame:
    """The first `count` prompts of a set, one per row, in the column `prompt`.

    The set's other columns, such as `category`, are kept. `source` is bundled (1,000, for
    reporting), bundled-tune (256 others, for choosing settings), coco, drawbench, or a file:
    MS-COCO's captions (.json), a table (.csv, .tsv, .jsonl, .parquet) with a column prompt,
    prompts, caption or text, or a text with one prompt per line. The images of MS-COCO are taken
    in a random order that `seed` fixes, each with its first caption; a larger count adds to a
    smaller one. The table's `attrs` record the source and the seed. Raises WrongUse for a file
    that is missing or unreadable, a missing column, too few prompts, or a negative seed.
    """
    check(seed >= 0, "prompt_seed", seed, "give at least 0")
    path = _find(source)
    table = _prompt_column(_read(path, source, seed), _name(source, path))
    remedy = f"{source} has {len(table)} prompts"
    check(count is None or 1 <= count <= len(table), "count", count, remedy)
    table = table.head(count)
    named = str(source) in (*BUNDLED, *REMOTE)
    table.attrs = {
        "prompts_from": str(source) if named else path.name,
        "prompts_seed": seed if path.suffix == ".json" else None,
    }
    return table


def _find(source: str | os.PathLike) -> Path:
    name, path = str(source), Path(source)
    remedy = f"use one of {', '.join((*BUNDLED, *REMOTE))}, or the path of a file"
    if name in BUNDLED:
        path = data_folder() / BUNDLED[name]
    elif name in REMOTE:
        path, remedy = cache_folder() / REMOTE[name][0], REMOTE[name][1]
    check(path.is_file(), "prompts", _name(source, path), remedy)
    return path


def _name(source: str | os.PathLike, path: Path) -> str:
    missing = str(source) in REMOTE and not path.is_file()
    return f"{source}, which is not at {path}" if missing else str(source)


def _read(path: Path, source: str | os.PathLike, seed: int) -> pd.DataFrame:
    try:
        if path.suffix == ".json":
            return _coco(path, seed)
        return READERS.get(path.suffix, _lines)(path)
    except (ValueError, KeyError, TypeError) as error:  # from json, pandas and Arrow
        reason = f"{path.suffix or 'text'} ({str(error).splitlines()[0]})"
        raise WrongUse(
            f"prompts is {source}, which could not be read as {reason}; fetch it again"
        ) from error


def _prompt_column(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Renames the column of prompts to `prompt`, and a category's to `category`."""
    plain = {column: str(column).strip().lower() for column in table}
    known = (*NAMES, "category")
    table = table.rename(columns={old: new for old, new in plain.items() if new in known})
    column = next((column for column in NAMES if column in table), None)
    remedy = f"the file needs a column named {', '.join(NAMES[:-1])} or {NAMES[-1]}"
    check(column is not None, "prompts", name, remedy)
    return table.rename(columns={column: "prompt"})


def _coco(path: Path, seed: int) -> pd.DataFrame:
    """One caption per image, the one with the lowest id; images in a random order."""
    table = pd.DataFrame(json.loads(path.read_text())["annotations"])[["image_id", "id", "caption"]]
    first = table.sort_values(["image_id", "id"]).drop_duplicates("image_id")
    first["caption"] = first["caption"].str.split().str.join(" ")  # some end in a line break
    order = np.random.default_rng(seed).permutation(len(first))
    return first.iloc[order].drop(columns="id").reset_index(drop=True)


def _lines(path: Path) -> pd.DataFrame:
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    return pd.DataFrame({"prompt": lines})


def listed(prompts: str | Sequence[str]) -> list[str]:
    """Prompts as a list: a string is one prompt. Raises WrongUse for a table or a dict."""
    if isinstance(prompts, str):
        return [prompts]
    keyed = (
        isinstance(prompts, Mapping)
        or hasattr(prompts, "columns")
        or not isinstance(prompts, Iterable)
    )
    remedy = 'give a list of texts, such as table["prompt"]'
    check(not keyed, "prompts", f"a {type(prompts).__name__}", remedy)
    return list(prompts)


def check_prompts(reader: Any, prompts: Sequence[str], truncate: bool = False) -> None:
    """Raises WrongUse for a prompt that is empty, or too long for every tokenizer of `reader`.

    `reader` is a pipeline or a processor. The limit is the largest that any of its tokenizers
    takes: Stable Diffusion 3 reads 77 tokens by CLIP, but 256 by T5. With `truncate`, prompts of
    any length pass; the pipeline then cuts them.
    """
    tokenizers = _tokenizers(reader)
    for prompt in prompts:
        words = isinstance(prompt, str) and bool(prompt.strip())
        check(words, "prompt", repr(prompt), "give a text with at least one word")
        if truncate or not tokenizers:
            continue
        limit, tokenizer = max(tokenizers, key=lambda pair: pair[0])
        length = len(tokenizer.tokenize(prompt)) + tokenizer.num_special_tokens_to_add()
        shorter = f"shorten it to {limit} (a word the model does not know costs several)"
        remedy = f"{shorter}, or truncate it (truncate=True)"
        check(length <= limit, "prompt", f"{prompt!r}, {length} tokens", remedy)


def _tokenizers(reader: Any) -> list[tuple[int, Any]]:
    """The tokenizers of a pipeline or processor, each with the tokens that it takes."""
    parts = getattr(reader, "components", None)
    parts = {"tokenizer": reader.tokenizer} if parts is None else parts
    limit = inspect.signature(reader.__call__).parameters.get("max_sequence_length")
    default = limit.default if limit is not None else None
    most = default if isinstance(default, int) else DEFAULT_TOKENS
    return [
        (min(part.model_max_length, most), part)
        for name, part in parts.items()
        if name.startswith("tokenizer") and hasattr(part, "tokenize")
    ]
