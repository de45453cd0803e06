"""A yard for all lives."""

from pathlib import Path

import lives
import pytest


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yard")
    lives.lay_yard(folder)
    return folder
