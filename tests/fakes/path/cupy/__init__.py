"""``import cupy`` finds the stand-in where this folder's parent is in PYTHONPATH, for programs in processes.

``PLANTED`` in the environment plants a fault: ``file|right|wrong`` exchanges a line of a kernel, and
``signal`` lets the first launch end the process, as an illegal access may. ``CAPABILITY`` is the GPU's.
"""

import os
import signal
import sys
from pathlib import Path
from tempfile import mkdtemp

from scratchnet.plans.cuda import matmul
from scratchnet.plans.cuda.launch import compiling
from tests.fakes import cublas_stand_in, cuda_runtime, cupy_stand_in

sys.modules["cupy"] = cupy_stand_in.cupy
matmul.load = lambda xp, library=cublas_stand_in.Library: library()
cuda_runtime.Device.compute_capability = os.environ.get("CAPABILITY", "90")

planted = os.environ.get("PLANTED", "")
if planted == "signal":
    compiling.kernel = lambda *arguments, end=signal.raise_signal: end(signal.SIGSEGV)
elif planted:
    file, right, wrong = planted.split("|")
    folder = Path(mkdtemp())
    for path in compiling.FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        if path.name == file:
            assert text.count(right) == 1, "the kernel has changed: plant the fault again"
            text = text.replace(right, wrong)
        folder.joinpath(path.name).write_text(text, encoding="utf-8")
    compiling.FOLDER = folder
