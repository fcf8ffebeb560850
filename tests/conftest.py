"""What all tests share: hypothesis profiles, and the data folder that may lie beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

CHECKOUT = Path(__file__).resolve().parent.parent

# No deadline: the first example of a kernel's test may compile it.
settings.register_profile("ci", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", parent=settings.get_profile("ci"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def shared_folder() -> Path:
    """Where the data folder is looked for: INFERENCEGYM_SHARED, else ../shared beside the checkout."""
    named = os.environ.get("INFERENCEGYM_SHARED")
    return Path(named) if named else CHECKOUT.parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the data folder where there is none, and say so."""
    folder = shared_folder()
    if not (folder / "data").is_dir():
        reason = f"no data folder at {folder}; set INFERENCEGYM_SHARED to the folder that holds data/"
        for item in items:
            if "needs_shared" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def shared_data() -> Path:
    """The folder data/ of the shared folder; for tests marked `needs_shared`."""
    return shared_folder() / "data"
