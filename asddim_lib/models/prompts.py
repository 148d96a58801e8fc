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
from asddim_lib.errors import check, check_whole
from asddim_lib.models.load import data_folder, loading

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
    "drawbench": ("drawbench.csv", f"fetch {_DRAWBENCH} to there, or give the path of your copy"),
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
    MS-COCO's captions or a list of prompts (.json), a table (.csv, .tsv, .jsonl, .parquet) with a
    column prompt, prompts, caption or text, or a text with one prompt per line. The images of
    MS-COCO are taken in a random order that `seed` fixes, each with its first caption; a larger
    count adds to a smaller one. The table's `attrs` record the source and the seed. Raises WrongUse
    for a file that is missing or unreadable, a missing column, too few prompts, or a negative seed.
    """
    check_whole("prompt_seed", seed, 0)
    path = _find(source)
    with loading("prompts", str(source), f"give a {path.suffix or 'text'} file of prompts"):
        table = _read(path, seed)
    plain = {str(column).strip().lower(): column for column in table}
    found = [name for name in NAMES if name in plain]
    remedy = f"the file needs a column named {', '.join(NAMES[:-1])} or {NAMES[-1]}"
    check(bool(found), "prompts", str(source), remedy)
    columns = {plain[found[0]]: "prompt", plain.get("category"): "category"}
    remedy = f"{source} has {len(table)} prompts"
    check(count is None or 1 <= count <= len(table), "count", count, remedy)
    table = table.rename(columns=columns).head(count)
    table.attrs = {
        "prompts_from": str(source) if str(source) in (*BUNDLED, *REMOTE) else path.name,
        "prompts_seed": seed if "image_id" in table else None,
    }
    return table


def _find(source: str | os.PathLike) -> Path:
    """The file of a set. Raises WrongUse where there is none."""
    name, path = str(source), Path(source)
    if name in BUNDLED:
        return data_folder() / BUNDLED[name]
    remedy = f"use one of {', '.join((*BUNDLED, *REMOTE))}, or the path of a file"
    if name in REMOTE:
        file, remedy = REMOTE[name]
        path = cache_folder() / file
        name += f", which is not at {path}"
    check(path.is_file(), "prompts", name, remedy)
    return path


def _read(path: Path, seed: int) -> pd.DataFrame:
    """A file's table, by its ending."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return pd.read_parquet(path)
    if kind == ".csv":
        head = pd.read_csv(path, nrows=0, encoding="utf-8-sig")
        texts = {name: str for name in head if str(name).strip().lower() in NAMES}
        return pd.read_csv(path, keep_default_na=False, encoding="utf-8-sig", dtype=texts)
    text = path.read_text(encoding="utf-8-sig")
    if kind == ".json":
        return _json(json.loads(text), seed)
    # Not splitlines: a prompt may contain U+2028 and other ends of lines.
    lines = [line for line in text.split("\n") if line.strip()]
    if kind == ".jsonl":
        return _rows([json.loads(line) for line in lines])
    return _tsv(lines) if kind == ".tsv" else pd.DataFrame({"prompt": lines})


def _tsv(lines: list[str]) -> pd.DataFrame:
    """A table whose fields no quotation marks enclose, as PartiPrompts has it.

    A field is unquoted only if all marks in it are doubled, as some writers leave them.
    """
    head, *rows = [[_unquoted(part) for part in line.split("\t")] for line in lines]
    return pd.DataFrame([dict(zip(head, row, strict=True)) for row in rows], columns=head)


def _unquoted(field: str) -> str:
    inner = field[1:-1]
    doubled = len(field) > 1 and field[0] == field[-1] == '"' and '"' in inner
    whole = doubled and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if whole else field


def _rows(values: list[Any]) -> pd.DataFrame:
    """A table of JSON values: each a prompt, or an object with one."""
    objects = [{"prompt": value} if isinstance(value, str) else value for value in values]
    if not all(isinstance(value, dict) for value in objects):
        raise TypeError("a value is neither a text nor an object")
    return pd.DataFrame(objects)


def _json(value: Any, seed: int) -> pd.DataFrame:
    """MS-COCO's captions, or a list of prompts or of objects, also under a name of `NAMES`."""
    if isinstance(value, dict) and "annotations" in value:
        return _coco(value["annotations"], seed)
    if isinstance(value, dict):
        value = next((value[name] for name in NAMES if name in value), None)
    if not isinstance(value, list):
        raise TypeError("it is no list of prompts")
    return _rows(value)


def _coco(annotations: list[dict[str, Any]], seed: int) -> pd.DataFrame:
    """One caption per image, the one with the lowest id; images in a random order."""
    table = pd.DataFrame(annotations)[["image_id", "id", "caption"]]
    first = table.sort_values(["image_id", "id"]).drop_duplicates("image_id")
    first["caption"] = first["caption"].str.split().str.join(" ")  # some end in a line break
    order = np.random.default_rng(seed).permutation(len(first))
    return first.iloc[order].drop(columns="id").reset_index(drop=True)


def listed(prompts: str | Sequence[str]) -> list[str]:
    """Prompts as a list: a string is one prompt. Raises WrongUse for a table or a dict."""
    if isinstance(prompts, str):
        return [prompts]
    keyed = isinstance(prompts, Mapping) or hasattr(prompts, "columns")
    remedy = 'give a list of texts, such as table["prompt"]'
    texts = isinstance(prompts, Iterable) and not keyed
    check(texts, "prompts", f"a {type(prompts).__name__}", remedy)
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
