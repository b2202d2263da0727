"""Small files of CIFAR-10's binary layout, and the check of what is read from them."""

import numpy as np
import pytest

from scratchnet.data import cifar as module

OFFICIAL_RECORDS, RECORDS = module.RECORDS, 20
BATCHES = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
NAMES = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Files of 20 records instead of 10,000."""
    monkeypatch.setattr(module, "RECORDS", RECORDS)


def batch(k):
    rng = np.random.default_rng(k)
    return rng.integers(0, 256, (RECORDS, 3072), np.uint8), rng.integers(0, 10, RECORDS)


def binary_files():
    files = {"batches.meta.txt": ("\n".join(NAMES) + "\n\n").encode()}
    for k, name in enumerate(BATCHES):
        pixels, labels = batch(k)
        files[f"{name}.bin"] = np.column_stack([labels.astype(np.uint8), pixels]).tobytes()
    return files


def write_binary(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name, content in binary_files().items():
        (folder / name).write_bytes(content)
    return folder


def check(data):
    assert data.name == "CIFAR-10" and list(data.class_names) == NAMES
    assert data.train_images.shape == (5 * RECORDS, 32, 32, 3) and data.train_images.dtype == np.uint8
    assert data.test_images.shape == (RECORDS, 32, 32, 3) and data.test_labels.dtype == np.int64
    for k in range(6):
        pixels, labels = batch(k)
        here = slice(k * RECORDS, (k + 1) * RECORDS) if k < 5 else slice(None)
        images = data.train_images[here] if k < 5 else data.test_images
        assert np.array_equal((data.train_labels if k < 5 else data.test_labels)[here], labels)
        # In the files, an image is its red plane, then green, then blue, each row by row.
        assert (
            images[3, 5, 7].tolist() == pixels[3, [5 * 32 + 7, 1024 + 5 * 32 + 7, 2048 + 5 * 32 + 7]].tolist()
        )
        assert np.array_equal(images.transpose(0, 3, 1, 2).reshape(RECORDS, -1), pixels)
