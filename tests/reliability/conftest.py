import pytest
from support import kills


@pytest.fixture(scope="module")
def nursery(request):
    """Processes that run functions of the test's file and end at a chosen moment."""
    nursery = kills.Nursery(str(request.path))
    yield nursery
    nursery.close()
