"""Run lessons from top to bottom, at full size, and save them with their outputs.

    python examples/lessons/execute.py                       all of them
    python examples/lessons/execute.py 2-convolution.ipynb   one

Needs ``python -m pip install --editable ".[lessons]"``.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from PIL import Image

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook: Any, small: bool = False) -> Any:
    """Run all cells in a fresh kernel, in an empty folder; return the same notebook.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
    small : bool
        Whether to run at the small size, as the tests do.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises. The message shows the cell and what it raised.
    """
    from nbclient import NotebookClient

    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | {"SCRATCHNET_LESSONS": "small" if small else ""})
    return notebook


def tidy(notebook: Any) -> Any:
    """Remove what differs between machines and helps no reader; return the same notebook."""
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_erased(output)]
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            data = output.get("data", {})
            if "image/png" in data:  # the other entry is only <Figure size 640x480>
                output.data = {"image/png": _in_256_colours(data["image/png"])}
    return notebook


def is_erased(output: Any) -> bool:
    """Tell whether an output is a progress bar that has erased itself."""
    lines = output.get("text", "").split("\n")
    return output.get("name") == "stderr" and not any(line.split("\r")[-1].strip() for line in lines)


def _in_256_colours(png: str) -> str:
    """Return the same image in a third of the bytes."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        smaller = io.BytesIO()
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def main(names: list[str]) -> None:
    """Execute the notebooks with these names, or all."""
    lessons = sorted(HERE.glob("*.ipynb"))
    chosen = [HERE / Path(name).name for name in names] or lessons
    for path in chosen:
        if path not in lessons:
            refuse(f"there is no lesson {path.name}")
    try:
        import nbformat
        from nbclient.exceptions import CellExecutionError
    except ImportError:
        refuse('running lessons needs nbclient and ipykernel: python -m pip install --editable ".[lessons]"')
    for path in chosen:
        start = time.perf_counter()
        try:
            notebook = tidy(execute(nbformat.read(path, as_version=4)))
        except CellExecutionError as error:
            print(f"execute.py: {path.name} stopped, and is left unchanged.\n{error}", file=sys.stderr)
            sys.exit(1)
        partial = path.with_suffix(".partial")
        nbformat.write(notebook, partial)
        os.replace(partial, path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1024:.0f} KB")


def refuse(sentence: str) -> NoReturn:
    """End the program with a sentence and status 2."""
    print(f"execute.py: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
