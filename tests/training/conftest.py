"""A run without interruption."""

import pytest

from tests.fakes.runs import fit


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Four epochs without interruption: the folder."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    fit(folder, 4)
    return folder
