"""One session for all tests of the explorer."""

import pytest

from condec.explorer.session import Session
from explored import explored_run


@pytest.fixture(scope="package")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return explored_run(tmp_path_factory.mktemp("explored"))
