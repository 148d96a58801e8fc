"""Prompts in the forms in which their makers hand them out."""

import json

import pandas as pd
import pytest

from asddim_lib import load_pipeline
from asddim_lib.metrics.clip import load_clip
from asddim_lib.models import prompts
from asddim_lib.models.prompts import check_prompts, load_prompts

DRAWBENCH = '"Prompts","Category"\n"A red colored car.","Colors"\n"One cat and one dog sitting on the grass.","Counting"\n"A sign that says \'Hello World\'.","Text"\n'


@pytest.fixture
def coco(tmp_path):
    """As captions_val2017.json is: some captions an image, in no order, some with a line break at their end."""
    images = [
        {
            "license": 1,
            "file_name": f"{i:012d}.jpg",
            "height": 427,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "id": i,
        }
        for i in range(100, 140)
    ]
    annotations = [
        {
            "image_id": i,
            "id": 10 * i + k,
            "caption": f"Caption {k} of image {i}." + " \n" * (k == 1),
        }
        for k in (3, 1, 2)
        for i in range(139, 99, -1)
    ]
    file = tmp_path / "captions_val2017.json"
    file.write_text(
        json.dumps(
            {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
        )
    )
    return file


def test_coco_gives_each_image_s_first_caption_in_an_order_that_the_seed_fixes(coco):
    whole, some, others = load_prompts(coco), load_prompts(coco, 10), load_prompts(coco, 10, seed=1)
    assert sorted(whole["image_id"]) == list(range(100, 140))
    assert list(whole["prompt"]) == [f"Caption 1 of image {i}." for i in whole["image_id"]]
    assert list(some["prompt"]) == list(whole["prompt"][:10])
    assert list(some["prompt"]) != list(others["prompt"])
    assert list(some["image_id"]) != sorted(some["image_id"])
    assert others.attrs == {"prompts_from": "captions_val2017.json", "prompts_seed": 1}


def test_drawbench_keeps_its_categories(tmp_path):
    (tmp_path / "db.csv").write_text(DRAWBENCH)
    found = load_prompts(tmp_path / "db.csv")
    assert list(found["prompt"]) == [
        "A red colored car.",
        "One cat and one dog sitting on the grass.",
        "A sign that says 'Hello World'.",
    ]
    assert list(found["category"]) == ["Colors", "Counting", "Text"]


def test_a_named_set_comes_out_of_the_cache_or_says_where_to_fetch_it(tmp_path, coco, monkeypatch):
    monkeypatch.setattr(prompts, "CACHE", tmp_path)
    assert len(load_prompts("coco", 5)) == 5
    with pytest.raises(
        ValueError,
        match=r"prompts is drawbench, which is not at .*drawbench\.csv; fetch https://docs\.google\.com",
    ):
        load_prompts("drawbench")
    (tmp_path / "drawbench.csv").write_text(DRAWBENCH)
    assert load_prompts("drawbench", 2).attrs == {"prompts_from": "drawbench", "prompts_seed": None}


@pytest.mark.parametrize("column", ["prompt", "Prompts", "caption", "TEXT"])
def test_any_table_will_do(tmp_path, column):
    table = pd.DataFrame(
        {"number": [1, 2], column: ["a boot", "2020-01-01"], "Category": ["x", "y"]}
    )
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "a.parquet")
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        found = load_prompts(tmp_path / f"a.{kind}")
        assert list(found["prompt"]) == ["a boot", "2020-01-01"], kind
        assert list(found["category"]) == ["x", "y"], kind
    (tmp_path / "a.txt").write_text("a boot\n\n2020-01-01\n")
    assert list(load_prompts(tmp_path / "a.txt")["prompt"]) == ["a boot", "2020-01-01"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "words\na boot\n", "needs a column named prompt"),
        ("a.json", "{", "could not be read as .json"),
        ("a.json", "[1]", "could not be read as .json"),
        ("a.jsonl", "{", "could not be read as .jsonl"),
        ("a.parquet", "PAR1", "could not be read as .parquet"),
        ("a.txt", "a boot\n", "count is 2; .* has 1 prompts"),
    ],
)
def test_what_is_no_set_of_prompts_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(tmp_path / name, 2)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_a_reader_cannot_take_whole_is_named():
    for reader in (load_pipeline(), load_clip()[1]):
        check_prompts(reader, ["a red boot on a white ground"])
        with pytest.raises(
            ValueError, match=r"prompt is 'a red boot a red boot .*, 26 tokens; shorten it to 16"
        ):
            check_prompts(reader, ["a red boot " * 8])
        with pytest.raises(ValueError, match="give a text with at least one word"):
            check_prompts(reader, [" "])
