from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.kinds.lab import Lab


@pytest.fixture(scope="session")
def labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Lab]]:
    """A lab for each base, made when first asked for."""
    made: dict[str, Lab] = {}

    def get(name: str) -> Lab:
        if name not in made:
            made[name] = Lab.make(tmp_path_factory.mktemp(name), name)
        return made[name]

    yield get
    for lab in made.values():
        lab.close()
