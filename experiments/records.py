"""Records of drawn pictures, read back with the texts of their prompts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from asddim_lib.cache import short_hash
from asddim_lib.errors import WrongUse, check
from asddim_lib.models.prompts import BUNDLED, load_prompts
from experiments.draw import file_hash
from experiments.setting import CONSTANT


def read_records(out: str | os.PathLike) -> pd.DataFrame:
    """An experiment's records, a row per picture, with the column `prompt`.

    Records of earlier versions lack that column. It is added where the hash in their provenance
    is that of bundled prompts. Records without guidance plans get the column `guidance_plan`.
    Raises WrongUse for a damaged file.
    """
    file, provenance_file = Path(out) / "records.parquet", Path(out) / "provenance.json"
    try:
        said = json.loads(provenance_file.read_text()) if provenance_file.exists() else {}
        same = said.get("records_sha256") in (None, file_hash(file))
        check(same, "its checksum", "another", "provenance.json has the right one")
        records = pd.read_parquet(file)
    except (ValueError, OSError) as error:  # Arrow's errors are of either kind
        reason = f"{file} is damaged ({str(error).splitlines()[0]})"
        remedy = "run the same command again: it is made from the pictures"
        raise WrongUse(f"{reason}; {remedy}") from error
    if "guidance_plan" not in records:
        records["guidance_plan"] = CONSTANT
    return records if "prompt" in records else _with_texts(records, said)


def by_plan(table: pd.DataFrame) -> pd.DataFrame:
    """The table with each guidance plan of a method as a method, such as `trailing, capped-1.5`.

    Constant guidance adds nothing to a method's name.
    """
    if "guidance_plan" not in table:
        return table
    method, plan = table["method"], table["guidance_plan"]
    return table.assign(method=method.where(plan == CONSTANT, method + ", " + plan))


def _with_texts(records: pd.DataFrame, said: dict[str, Any]) -> pd.DataFrame:
    for source in BUNDLED:
        texts = load_prompts(source)["prompt"].head(said.get("prompts", 0))
        if short_hash(list(texts)) == said.get("prompts_sha256"):
            return records.assign(prompt=records["index"].map(texts))
    return records
