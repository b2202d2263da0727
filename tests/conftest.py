"""Fixtures for the whole suite."""

import pytest

from scratchnet import backend
from tests.fakes import cupy_stand_in

collect_ignore = ["fakes/path"]  # to import it puts the stand-in in CuPy's place, for good


@pytest.fixture
def stand_in():
    """The stand-in for CuPy, installed: ``import cupy`` finds it."""
    with cupy_stand_in.installed() as cupy:
        yield cupy


@pytest.fixture(params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """A backend with CuPy: on the stand-in, and again on a GPU where there is one (``pytest -m gpu``)."""
    if request.param == "stand-in":
        request.getfixturevalue("stand_in")
        yield backend.get("cupy")
        return
    try:
        yield backend.get("cupy")
    except backend.BackendError as error:
        pytest.skip(str(error))
