"""The description of a plan: a table of its groups, their times, and what runs without a kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scratchnet.layers import Layer
from scratchnet.plans.kernel import Group
from scratchnet.tables import aligned

DIRECTIONS = "forward", "backward"
TITLES = [
    "group", "layers", "algorithm", "input", "map MB", "scratch MB", "M mult-adds", "forward ms",
    "backward ms", "GFLOP/s", "share",
]  # fmt: skip


@dataclass
class Clock:
    """How long the phases of each group took, in seconds, since the last ``reset``."""

    seconds: dict[tuple[int, str, str], float] = field(default_factory=dict)  # by group, pass, phase
    runs: dict[str, int] = field(default_factory=dict)  # by pass, "forward" or "backward"

    def reset(self) -> None:
        """Forget everything, as after a change of the machine's load."""
        self.seconds.clear()
        self.runs.clear()

    def count(self, direction: str) -> None:
        """Count one run of a pass."""
        self.runs[direction] = self.runs.get(direction, 0) + 1


def describe(plan: Any, buffers: bool = False) -> str:
    """Return the table that ``Plan.describe`` documents."""
    clock, arena, rows, owned = plan.clock, plan.arena, [TITLES], []
    seconds = [[0.0 for _ in DIRECTIONS] for _ in plan.groups]  # of each pass, on the average
    for (i, direction, _), s in clock.seconds.items():
        seconds[i][DIRECTIONS.index(direction)] += s / max(1, clock.runs.get(direction, 0))
    total = sum(map(sum, seconds)) or 1.0
    for i, (g, kernel) in enumerate(zip(plan.groups, plan.kernels, strict=True)):
        before, scratch = plan.maps[i], plan.scratch[i]
        own = list(before.buffers.values())
        owned.append(own + scratch)
        passes = (3 if i else 2) if clock.runs.get("backward") else 1
        operations, spent = 2 * passes * g.multiply_adds, sum(seconds[i])
        rows.append(
            [
                g.name,
                g.title,
                f"{kernel.algorithm} {kernel.describe()}".strip(),
                f"{' x '.join(str(s) for s in g.input_shape)} {before.layout}".strip(),
                *(f"{sum(b.nbytes for b in some) / 1e6:.1f}" for some in (own, scratch)),
                f"{g.multiply_adds / 1e6:,.0f}",
                *(f"{s * 1e3:.2f}" if clock.seconds else "" for s in seconds[i]),
                f"{operations / spent / 1e9:.0f}" if spent and operations else "",
                f"{spent / total:.1%}" if spent else "",
            ]
        )
    head, *table = aligned(rows, left=4, gap="  ")
    lines = [head]
    for line, own in zip(table, owned, strict=True):
        lines.append(line)
        lines += [
            f"    {b.name}: {' x '.join(map(str, b.shape))} {b.dtype}, {b.nbytes:,} bytes at {b.offset:,}, "
            f"steps {b.first_use} to {b.last_use}"
            for b in own
            if buffers
        ]
    head = (
        f"plan for {'training' if plan.training else 'inference'}, input {plan.input_shape}, "
        f"{plan.describe_device()}; {arena.size / 1e6:.0f} MB of workspace for {len(arena.buffers)} buffers "
        f"totalling {sum(b.nbytes for b in arena.buffers) / 1e6:.0f} MB"
    )
    runs = " and ".join(f"{clock.runs.get(d, 0)} {d}" for d in DIRECTIONS)
    legend = (
        "map: input and its gradient; scratch: mostly in the same place for all groups; ms: mean over "
        f"{runs} passes (plan.clock.reset() forgets the slow first ones); GFLOP/s: by the layer's definition"
    )
    return "\n".join([head, *lines, legend])


def fallback_warning(groups: list[Group], fallbacks: list[bool]) -> str:
    """Return what to warn of: layers that run by their own passes, with their share; "" if there are none."""
    slow = [g for g, fallback in zip(groups, fallbacks, strict=True) if fallback]
    if not slow:
        return ""
    total = sum(g.multiply_adds for g in groups)

    def share(g: Group) -> str:  # as far as its layer tells
        if g.multiply_adds:
            return f"{g.multiply_adds / total:.1%}"
        if len(slow) == len(groups):
            return "100.0%"
        silent = type(g.main).multiply_adds is Layer.multiply_adds and g.main.parameters()
        return "an unknown share" if silent else "0.0%"

    named = ", ".join(f"{g.main.label} with {share(g)}" for g in slow)
    return (
        f"no kernel is registered for these layers, which run by their own forward and backward: {named} of "
        "the network's multiply-adds. A composite is planned if it defines chain(), and plans.register() "
        "teaches plans a layer"
    )
