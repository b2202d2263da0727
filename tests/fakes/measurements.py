"""Measurements as the benchmarks make them, without measuring anything."""

TASK = {
    "kind": "training",
    "arch": "vgg16",
    "image_size": 32,
    "batch_size": 128,
    "batch_norm": False,
    "width": 1.0,
    "engine": "layers",
    "threads": 2,
}
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "system": "Linux",
    "python": "3.11",
    "date": "2026-01-31",
    "environment": {},
    "command": "python benchmarks/something.py",
}


class Silent:
    """A progress bar that shows nothing."""

    def set_description(self, text):
        pass

    def update(self):
        pass


def measured(seconds, memory=1000.0, difference=1e-6):
    return {
        "seconds": seconds,
        "memory": memory,
        "versions": "some version",
        "difference": difference,
        "first": [2.0, 1.5],
    }


def race_of(contenders, remarks=(), **task):
    return {"task": {**TASK, **task}, "contenders": contenders, "remarks": list(remarks), **MACHINE}


def growth_of(axis, values, remarks=()):
    points = [
        {
            "axis": axis,
            "kind": kind,
            "value": value,
            "race": race_of(
                {"scratchnet": measured([1.0 / value]), "channels_last": measured([2.0])}, kind=kind
            ),
        }
        for value in values
        for kind in ("training", "inference")
    ]
    return {"points": points, "remarks": list(remarks), **MACHINE}
