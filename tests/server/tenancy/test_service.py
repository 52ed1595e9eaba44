"""Keys of the command line in the place of others; tables that are followed."""

import asyncio

import pytest

from turret_server.errors import StartupError
from turret_server.tenancy import service as service_module
from turret_server.tenancy.principal import Scope
from turret_server.tenancy.service import Tenancy, static_keys


def test_the_tenants_of_keys_that_replace_others_are_known():
    old, new = static_keys(["old"]), static_keys(["new"])
    tenancy = Tenancy(old)
    tenancy.use_keys(new)
    (before,), (now,) = old.values(), new.values()
    assert tenancy.knows(now.tenant.name)
    assert not tenancy.knows(before.tenant.name)


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "schlüssel"])
@pytest.mark.parametrize("kind", ["keys", "admin_keys", "gateway_keys", "metrics_keys"])
def test_a_key_that_anybody_or_nobody_could_send(kind, key):
    """`--admin-key "$UNSET"` made everybody an admin."""
    with pytest.raises(StartupError, match="cannot be one") as caught:
        static_keys(**{"keys": ["good"], kind: [key]})
    assert "schlüssel" not in str(caught.value)


def test_one_key_for_several_things_may_do_all_of_them():
    (found,) = static_keys(["one"], ["one"], ["one"], ["one"]).values()
    assert found.scopes == {Scope.INFER, Scope.METRICS, Scope.ADMIN, Scope.GATEWAY}


async def test_a_fault_while_the_tables_are_read_does_not_end_the_following(
    database, admin, monkeypatch
):
    """Such as a row that a newer server wrote: no key was revoked any more, without a word."""
    admin.create_tenant("acme")
    key = admin.create_key("acme")
    monkeypatch.setattr(service_module, "_REFRESH_S", 0.01)
    tenancy = Tenancy({}, database)
    refresh, faults = tenancy._directory.refresh, []

    def fail_once():
        if not faults:
            faults.append(True)
            raise ValueError("'other' is not a valid Scope")
        refresh()

    monkeypatch.setattr(tenancy._directory, "refresh", fail_once)
    async with asyncio.timeout(10), tenancy.running():
        while not faults:
            await asyncio.sleep(0.01)
        admin.revoke_key(key[:11])
        while tenancy.find(key) is not None:
            await asyncio.sleep(0.01)
        assert not tenancy.is_database_down
