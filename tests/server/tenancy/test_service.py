"""Keys of the command line in the place of others."""

from turret_server.tenancy.service import Tenancy, static_keys


def test_the_tenants_of_keys_that_replace_others_are_known():
    old, new = static_keys(["old"]), static_keys(["new"])
    tenancy = Tenancy(old)
    tenancy.use_keys(new)
    (before,), (now,) = old.values(), new.values()
    assert tenancy.knows(now.tenant.name)
    assert not tenancy.knows(before.tenant.name)
