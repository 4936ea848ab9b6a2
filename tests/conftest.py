"""What holds for every test: no setting of the person who runs them has a say."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# No limit on how long one example may take: a busy machine is not a fault of the code.
settings.register_profile("pressroom", deadline=None)
settings.load_profile("pressroom")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this a PRESSROOM_PORT in somebody's shell would change what is tested, or end it."""
    for name in list(os.environ):
        if name.startswith("PRESSROOM_"):
            monkeypatch.delenv(name)
