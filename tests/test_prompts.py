"""Prompts in the formats of their publishers, and their length."""

import csv
import io
import json
import string

import pandas as pd
import pytest
from diffusers import (
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5TokenizerFast

from asddim_lib import load_pipeline
from asddim_lib.errors import WrongUse
from asddim_lib.metrics.clip import load_clip
from asddim_lib.models import prompts
from asddim_lib.models.load import data_folder
from asddim_lib.models.prompts import _unquoted, check_prompts, listed, load_prompts
from tests.refusals import refuses

DRAWBENCH = """"Prompts","Category"
"A red colored car.","Colors"
"One cat and one dog sitting on the grass.","Counting"
"A sign that says 'Hello World'.","Text"
"""


@pytest.fixture
def coco(tmp_path):
    """Like captions_val2017.json: three captions per image, unsorted, some with a line break."""
    images = [{"license": 1, "file_name": f"{i:012d}.jpg", "id": i} for i in range(100, 140)]
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
    content = {"info": {"year": 2017}, "images": images, "annotations": annotations}
    file.write_text(json.dumps(content))
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
    table = load_prompts(tmp_path / "db.csv")
    assert list(table["prompt"]) == [
        "A red colored car.",
        "One cat and one dog sitting on the grass.",
        "A sign that says 'Hello World'.",
    ]
    assert list(table["category"]) == ["Colors", "Counting", "Text"]


def test_a_named_set_comes_out_of_the_cache_or_says_where_to_fetch_it(tmp_path, coco, monkeypatch):
    monkeypatch.setattr(prompts, "cache_folder", lambda: tmp_path)
    assert len(load_prompts("coco", 5)) == 5
    missing = (
        r"prompts is drawbench, which is not at .*drawbench\.csv; fetch https://docs\.google\."
    )
    with pytest.raises(WrongUse, match=missing):
        load_prompts("drawbench")
    (tmp_path / "drawbench.csv").write_text(DRAWBENCH)
    assert load_prompts("drawbench", 2).attrs == {"prompts_from": "drawbench", "prompts_seed": None}


@pytest.mark.parametrize("column", ["prompt", "Prompts", "caption", "TEXT"])
def test_any_table_loads(tmp_path, column):
    columns = {"number": [1, 2], column: ["a boot", "2020-01-01"], "Category": ["x", "y"]}
    table = pd.DataFrame(columns)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "a.parquet")
    for kind in ("csv", "tsv", "jsonl", "parquet"):
        loaded = load_prompts(tmp_path / f"a.{kind}")
        assert list(loaded["prompt"]) == ["a boot", "2020-01-01"], kind
        assert list(loaded["category"]) == ["x", "y"], kind
    (tmp_path / "a.txt").write_text("a boot\n\n2020-01-01\n")
    assert list(load_prompts(tmp_path / "a.txt")["prompt"]) == ["a boot", "2020-01-01"]


#: Prompts of one line, with what separates lines or fields elsewhere.
TEXTS = st.lists(
    st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n\0\ufeff"), min_size=1
    ).filter(lambda text: text.strip() and _unquoted(text) == text),
    min_size=1,
    max_size=5,
)


def written(kind, texts):
    """A file's content of one kind, as other programs write it."""
    if kind == ".csv":
        file = io.StringIO()
        rows = csv.writer(file, quoting=csv.QUOTE_ALL)
        rows.writerows([["Prompt", "n"], *([text, "1"] for text in texts)])
        return file.getvalue()
    objects = [{"caption": text, "n": 1} for text in texts]
    return {
        ".txt": "\n".join(texts),
        ".tsv": "\n".join(["Prompt\tn", *(f"{text}\t1" for text in texts)]),
        ".json": json.dumps(texts, ensure_ascii=False),
        ".jsonl": "\n".join(json.dumps(one, ensure_ascii=False) for one in objects),
    }[kind]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, upper=st.booleans(), mark=st.booleans(), windows=st.booleans())
@pytest.mark.parametrize("kind", [".txt", ".csv", ".tsv", ".json", ".jsonl"])
def test_prompts_come_back_from_every_kind_of_file(kind, texts, upper, mark, windows, tmp_path):
    content = written(kind, texts)
    if windows and kind != ".csv":
        content = content.replace("\n", "\r\n")
    file = tmp_path / f"p{kind.upper() if upper else kind}"
    file.write_bytes((b"\xef\xbb\xbf" if mark else b"") + content.encode())
    assert list(load_prompts(file)["prompt"]) == texts


def test_quotes_of_a_tsv_are_its_text_unless_they_are_doubled(tmp_path):
    lines = ['"Hello" on a "sign"', '"a boot', '"a ""red"" boot"', '5" of rain']
    (tmp_path / "p.tsv").write_text("Prompt\n" + "\n".join(lines))
    expected = ['"Hello" on a "sign"', '"a boot', 'a "red" boot', '5" of rain']
    assert list(load_prompts(tmp_path / "p.tsv")["prompt"]) == expected


@pytest.mark.parametrize(
    "value", [["a", "b"], [{"text": "a"}, {"text": "b"}], {"prompts": ["a", "b"]}]
)
def test_a_list_in_json_is_a_list_of_prompts(value, tmp_path):
    (tmp_path / "p.JSON").write_text(json.dumps(value))
    table = load_prompts(tmp_path / "p.JSON")
    assert list(table["prompt"]) == ["a", "b"]
    assert table.attrs["prompts_seed"] is None


@pytest.mark.parametrize("value", [{"prompt": ["a"]}, pd.DataFrame({"prompt": ["a"]})])
def test_a_table_is_no_list_of_prompts(value):
    with refuses("prompts"):
        listed(value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "words\na boot\n", "needs a column named prompt"),
        ("a.json", "{", r"^prompts is .*\.json"),
        ("a.json", "[1]", r"^prompts is .*\.json"),
        ("a.json", '{"a": 1}', r"^prompts is .*\.json"),
        ("a.tsv", "prompt\tb\nx\n", r"^prompts is .*\.tsv"),
        ("a.tsv", "", r"^prompts is .*\.tsv"),
        ("a.jsonl", "{", r"^prompts is .*\.jsonl"),
        ("a.parquet", "PAR1", r"^prompts is .*\.parquet"),
        ("a.txt", "a boot\n", "count is 2; .* has 1 prompts"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(WrongUse, match=message) as caught:
        load_prompts(tmp_path / name, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", [load_pipeline, lambda: load_clip()[1]])
def test_a_prompt_too_long_for_its_reader_is_named_with_both_remedies(load):
    reader, long = load(), "a red boot " * 8
    check_prompts(reader, ["a red boot on a white ground"])
    message = r"prompt is 'a red boot a red boot .*, 26 tokens; shorten it to 16 .*truncate=True"
    with pytest.raises(WrongUse, match=message):
        check_prompts(reader, [long])
    check_prompts(reader, [long], truncate=True)
    for truncate in (False, True):
        with refuses("prompt"):
            check_prompts(reader, [" "], truncate=truncate)


def clip_tokenizer(limit):
    folder = data_folder() / "model" / "tokenizer"
    return CLIPTokenizer.from_pretrained(folder, model_max_length=limit)


def t5_tokenizer():
    """One token per letter, without a limit of its own."""
    letters = [(letter, -2.0) for letter in "▁" + string.ascii_letters]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5TokenizerFast(vocab=special + letters, extra_ids=0)


def refiner():
    return StableDiffusionXLImg2ImgPipeline(
        vae=None,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=clip_tokenizer(77),
        unet=None,
        scheduler=None,
        add_watermarker=False,
    )


def sd3(t5):
    parts = ("transformer", "scheduler", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    words = {"tokenizer": clip_tokenizer(77), "tokenizer_2": clip_tokenizer(77)}
    return StableDiffusion3Pipeline(**dict.fromkeys(parts), **words, tokenizer_3=t5)


def pixart():
    """A pipeline with one tokenizer, whose limit has another value in its signature."""
    empty = dict.fromkeys(("text_encoder", "vae", "transformer", "scheduler"))
    return PixArtSigmaPipeline(tokenizer=t5_tokenizer(), **empty)


@pytest.mark.parametrize(
    ("build", "words", "letters", "limit"),
    [
        (refiner, 75, None, 77),
        (lambda: sd3(None), 75, None, 77),  # T5 may be left out
        (lambda: sd3(t5_tokenizer()), None, 254, 256),  # ▁ and </s> are tokens, too
        (pixart, None, 298, 300),
    ],
)
def test_the_limit_is_the_largest_of_all_tokenizers(build, words, letters, limit):
    pipe = build()
    longest = " ".join(["boot"] * words) if words else "a" * letters
    check_prompts(pipe, [longest])
    longer = longest + (" boot" if words else "a")
    with refuses("prompt"):
        check_prompts(pipe, [longer])
    check_prompts(pipe, [longer], truncate=True)


def test_a_tokenizer_without_a_limit_takes_512():
    class Reader:
        tokenizer = t5_tokenizer()

        def __call__(self): ...

    check_prompts(Reader(), ["a" * 510])
    with refuses("prompt"):
        check_prompts(Reader(), ["a" * 511])
