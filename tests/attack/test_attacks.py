"""Every attack for a few seconds; ``run.py`` carries them out in full."""

import pytest

from tests.attack.registry import NotHere, Tally, all_attacks

SECONDS = 3.0  # a minute for all of them


@pytest.mark.slow
@pytest.mark.parametrize("name", all_attacks())
def test_an_attack_of_some_seconds_does_no_harm(name, tmp_path):
    tally = Tally(SECONDS, tmp_path, seed=1)
    try:
        all_attacks()[name].run(tally)
    except NotHere as reason:
        pytest.skip(str(reason))
    assert tally.cases
    assert tally.failures == []


def test_a_case_that_raises_or_outlasts_its_time_is_a_failure(tmp_path):
    tally = Tally(1.0, tmp_path)
    with tally.case("raises"):
        raise KeyError("secret")
    with tally.case("lasts", limit=0.05):
        while True:
            pass
    with tally.case("is well"):
        pass
    assert tally.cases == 3 and tally.failed == 2
    assert tally.failures == ["raises: KeyError: 'secret'", "lasts: longer than 0 seconds"]
