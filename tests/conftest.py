"""Fixtures that several files of tests share."""

import pytest

from tests.colab_machine import once, output, publish


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The published repository, which stands at the public address for every machine."""
    return once(tmp_path_factory, "published", publish)


@pytest.fixture(scope="session")
def head(published):
    """The commit of the published repository."""
    return output("git", "-C", published, "rev-parse", "HEAD")
