from __future__ import annotations

import pytest

from turret_adapters import errors
from turret_server.engine.stores import adapter_error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.AdapterMalformed, 400),
        (errors.AdapterForbidden, 403),
        (errors.AdapterNotFound, 404),
        (errors.AdapterChanged, 409),  # whoever asks for a served adapter is not to blame
        (errors.AdapterUnsupported, 422),
        (errors.AdapterError, 500),
    ],
)
def test_what_an_adapter_is_refused_for_has_its_status(error, status):
    raised = adapter_error(error("adapter 'sql' was not loaded", "why", "Fix it.")).error()
    assert raised.status == status
    assert (raised.what, raised.why, raised.fix) == (
        "adapter 'sql' was not loaded",
        "why",
        "Fix it.",
    )
