"""Fixtures that several files of tests share."""

import gc
import importlib.util
import logging
import os
from collections import Counter
from pathlib import Path

# Nothing is fetched. Without this, each model that is missing is asked for again and again, online.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import numpy as np
import pytest
from PIL import Image

import experiments.rivals  # noqa: F401  (its grids enter the library's table)
from tests import small_book
from tests.colab_machine import once, output, publish


def pytest_collection_finish(session):
    """What was imported and collected stays to the end: it is not searched for garbage again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


# On a shared machine, time is no fact about the code.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")

#: Set by continuous integration, where nothing may be skipped.
CI = os.environ.get("CI") == "true"


def pytest_collection_modifyitems(config, items):
    """Three kinds of tests have a command of their own, which CI runs as well.

    `make site` opens pages in a browser, `make colab` runs every notebook, and `make inception` has
    torchvision, for Inception's network.
    """
    elsewhere = [] if config.option.markexpr else ["colab", "site"]
    if CI and importlib.util.find_spec("torchvision") is None:
        elsewhere.append("inception")
    out = {item for item in items if any(map(item.get_closest_marker, elsewhere))}
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def pytest_sessionfinish(session, exitstatus):
    """In CI a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if CI and exitstatus == 0 and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config):
    """The last line says what was skipped, and what would run it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        print(skipped(reporter.stats.get("skipped", [])), end="")


def skipped(reports):
    """A line with the reasons of skipped tests, and how many each skipped; empty without any."""
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    parts = "; ".join(f"{number} ({reason})" for reason, number in reasons.items())
    return f"NOT TESTED HERE: {parts}\n" if parts else ""


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the small book's HTML. Tests only read it."""
    folder = once(tmp_path_factory, "small-book", small_book.make)
    return folder / "_build" / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The published repository, which stands at the public address for every machine."""
    return once(tmp_path_factory, "published", publish)


@pytest.fixture(scope="session")
def head(published):
    """The commit of the published repository."""
    return output("git", "-C", published, "rev-parse", "HEAD")


@pytest.fixture(scope="session")
def bundled():
    """The bundled pipeline, loaded once. Tests take `pipe`, which restores it."""
    from asddim_lib import load_pipeline

    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lent(pipe):
    """Lends a pipeline. Its scheduler is restored; a hook that a test leaves is an error."""
    scheduler = pipe.scheduler
    yield pipe
    pipe.scheduler = scheduler
    for network in (pipe.unet, pipe.text_encoder, pipe.vae):
        assert not network._forward_hooks
        assert not network._forward_pre_hooks


@pytest.fixture
def pipe(bundled):
    """The bundled pipeline, restored after the test."""
    yield from lent(bundled)


@pytest.fixture(scope="session")
def shared_small():
    """A tiny pipeline, made once, where any model proves a fact. Tests take `small`."""
    from tests.tiny import coarse

    made = coarse()
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def small(shared_small):
    """The tiny pipeline, restored after the test."""
    yield from lent(shared_small)


@pytest.fixture(scope="session")
def whole(shared_small, tmp_path_factory):
    """The folder of a small run without a fault. Tests only read it."""
    from experiments.evaluate import evaluate
    from tests.runs import SETTING, TABLE

    folder = tmp_path_factory.mktemp("whole")
    evaluate(shared_small, TABLE, SETTING, folder)
    return folder


def give(pipe, monkeypatch):
    """Every command now gets this pipeline instead of loading its own."""
    from asddim_lib.models import load

    scheduler = pipe.scheduler

    def loaded(*_, **__):
        pipe.scheduler = scheduler
        return pipe

    monkeypatch.setattr(load, "load_pipeline", loaded)
    return pipe


@pytest.fixture
def preloaded(pipe, monkeypatch):
    """The bundled pipeline, which every command now gets instead of loading its own."""
    return give(pipe, monkeypatch)


@pytest.fixture
def preloaded_small(small, monkeypatch):
    """The tiny pipeline, which every command now gets instead of loading its own."""
    return give(small, monkeypatch)


@pytest.fixture(scope="module")
def browser():
    """One browser for a file's tests; it is closed after them, as asyncio cannot run beside it."""
    import browser as tool

    if not tool.installed():
        pytest.skip("there is no Chromium; `apt-get install chromium` brings one")
    with tool.chromium() as started:
        yield started


@pytest.fixture
def warnings_of_the_library(caplog):
    """The log, with the library's warnings whatever other tests did to the root logger."""
    caplog.set_level(logging.WARNING, "asddim_lib")
    return caplog


@pytest.fixture
def real_pictures(tmp_path):
    """A folder of real pictures of several shapes, one of them grey, and a file that is none."""
    folder = tmp_path / "real" / "more"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for k, shape in enumerate([(40, 40, 3), (50, 30, 3), (30, 60, 3), (40, 40)] * 3):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{k}.png")
    (folder / "labels.txt").write_text("no picture")
    return tmp_path / "real"


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """No test finds the features of real pictures that another has kept."""
    from asddim_lib.metrics import real

    monkeypatch.setattr(real, "cache_folder", lambda: tmp_path / "cache")


@pytest.fixture
def eight(monkeypatch):
    """Inception's stand-in, with eight numbers per picture. Lists how many pictures it sees."""
    import torch

    from asddim_lib.metrics import encoders

    seen, pool = [], torch.nn.functional.adaptive_avg_pool2d

    class Network(torch.nn.Module):
        def __init__(self, name, features, weights):
            super().__init__()
            content = Path(weights).read_bytes() if weights else b"published"
            self.bytes = torch.nn.Parameter(torch.tensor(list(content), dtype=torch.float32))

        def forward(self, images):
            seen.append(len(images))
            return pool(images.float(), (2, 4)).mean(1).flatten(1)

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Network)
    encoders.load_inception.cache_clear()
    yield seen
    encoders.load_inception.cache_clear()
