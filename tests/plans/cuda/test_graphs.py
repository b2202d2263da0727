"""CUDA graphs, as the stand-in records them."""

import pytest

from scratchnet.plans.cuda import graphs


def test_an_error_while_recording_leaves_the_stream_usable(stand_in):
    def fail():
        raise KeyboardInterrupt

    calls = iter([lambda: None, fail, lambda: None, lambda: None])
    replayed = graphs.Replayed(stand_in, lambda: next(calls)(), lambda: ())
    replayed()
    with pytest.raises(KeyboardInterrupt):
        replayed()
    assert not replayed.recorded and stand_in.cuda.get_current_stream().ptr == 0
    replayed()
    assert replayed.recorded
