"""What every test shares: where real third-party data lies, and one thread per worker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real third-party data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("HORNBOOK_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no third-party data at {folder}: set HORNBOOK_TEST_DATA")
    return folder
