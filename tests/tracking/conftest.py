"""What tests of tracking share."""

import pytest


@pytest.fixture
def said() -> list[str]:
    """The lines that a tracker has told the user: pass its `append` to the tracker."""
    return []
