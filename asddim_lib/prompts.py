"""Prompts: the bundled captions, or any text or CSV file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd

from asddim_lib.errors import check
from asddim_lib.models import Pipeline, data_folder


def load_prompts(source: str | os.PathLike = "bundled", count: int | None = None) -> pd.DataFrame:
    """The first `count` prompts of a set, one a row, in the column `prompt`; categories and attributes beside them where known.

    `source` is bundled (1,000, for reporting), bundled-tune (256 others, for choosing settings), a .csv file with a column `prompt`,
    or a text file with one prompt a line. Raises ValueError for a missing file, a missing column or too few prompts.
    """
    bundled = {"bundled": "prompts.csv", "bundled-tune": "prompts_tune.csv"}
    path = data_folder() / bundled[str(source)] if str(source) in bundled else Path(source)
    check(path.is_file(), "prompts", str(source), f"use one of {', '.join(bundled)}, or the path of a file")
    if path.suffix == ".csv":
        table = pd.read_csv(path, keep_default_na=False)
    else:
        table = pd.DataFrame({"prompt": [line for line in path.read_text().splitlines() if line.strip()]})
    check("prompt" in table, "prompts", str(source), "the file needs a column named prompt")
    check(count is None or 1 <= count <= len(table), "count", count, f"{source} has {len(table)} prompts")
    return table.head(count)


def check_prompts(pipe: Pipeline, prompts: list[str]) -> None:
    """Raises ValueError for a prompt that is empty, or longer than the pipeline's tokenizer takes."""
    tokenizer: Any = pipe.tokenizer
    for prompt in prompts:
        check(isinstance(prompt, str) and bool(prompt.strip()), "prompt", repr(prompt), "give a text with at least one word")
        length, limit = len(tokenizer.tokenize(prompt)) + 2, tokenizer.model_max_length
        check(length <= limit, "prompt", f"{prompt!r}, {length} tokens", f"shorten it to {limit} (a word the model does not know costs several)")
