"""Whoever runs the tests is told last of all what was skipped, and what would run it."""

from types import SimpleNamespace

import pytest

from tests import conftest
from tests.conftest import skipped

pytest_plugins = ["pytester"]
SKIPS = """
import pytest
@pytest.mark.parametrize("n", range(3))
def test_in_a_browser(n):
    pytest.skip("there is no Chromium; `apt-get install chromium` brings one")
def test_in_node():
    pytest.importorskip("no_such_package")
def test_that_runs():
    pass
"""


def test_the_last_line_counts_what_was_skipped_with_what_would_run_it(pytester):
    pytester.makeconftest("from tests.conftest import pytest_unconfigure")
    pytester.makepyfile(SKIPS)
    lines = pytester.runpytest_inprocess("-p", "no:cacheprovider").outlines
    assert lines[-1].startswith("NOT TESTED HERE: 3 (there is no Chromium; `apt-get install")
    assert "no_such_package" in lines[-1]
    pytester.makepyfile(test_skips="def test_that_runs(): pass")
    lines = pytester.runpytest_inprocess("-k", "that_runs").outlines
    assert "NOT TESTED" not in lines[-1]


@pytest.mark.parametrize(("ci", "code"), [(True, 1), (False, 0)])
def test_a_skip_fails_in_ci_alone(ci, code, pytester, monkeypatch):
    monkeypatch.setattr(conftest, "CI", ci)
    pytester.makeconftest("from tests.conftest import pytest_sessionfinish")
    pytester.makepyfile(SKIPS)
    assert pytester.runpytest_inprocess("-p", "no:cacheprovider").ret == code
    assert pytester.runpytest_inprocess("-k", "that_runs").ret == 0


def test_without_a_skip_there_is_no_line():
    assert skipped([]) == ""
    assert "x" in skipped([SimpleNamespace(longrepr=("file", 1, "Skipped: x"))])
