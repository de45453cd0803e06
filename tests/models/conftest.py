"""What tests of captioners share."""

from pathlib import Path

import families
import pytest


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved captioner of each family, by its name."""
    folder = tmp_path_factory.mktemp("families")
    for name, write in families.WRITERS.items():
        write(folder / name)
    return folder
