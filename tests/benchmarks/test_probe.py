"""A linear probe's step costs hardly more than looking, in time and in memory."""

import pytest


@pytest.mark.slow
def test_a_probes_step_costs_at_most_1_3_forward_passes(load):
    probe = load("probe")
    made = probe.contenders(32, 32, "vgg11", width=0.5, classifier_width=256)
    median, low, high = probe.ratios(probe.measure(made, 9), "probe", "forward")
    assert low <= 1.3, (median, low, high)  # on a busy machine the median of a few rounds may be anything
    memory = {name: size for name, (_, size) in made.items()}
    assert memory["forward"] < memory["probe"] < memory["full"]
