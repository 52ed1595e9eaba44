"""Tenants, keys and usage: what is sent, and what comes back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import httpx2
import pytest

from turret_client import AuditRow, Client, Key, Tenant, UsageRow
from turret_server.api.schema import tenants as schema

ACME = {
    "name": "acme",
    "weight": 2.0,
    "quotas": {"requests_per_minute": 5, "tokens_per_minute": None},
    "grants": ["sql"],
}
ROW = {
    "day": "2026-11-28",
    "tenant": "acme",
    "key": "tk-1",
    "model": "sql",
    "requests": 1,
    "prompt_tokens": 2,
    "cached_tokens": 0,
    "completion_tokens": 3,
    "pages": 0,
    "interrupted": 0,
}


def sent(script: Any) -> tuple[str, str]:
    request = script.requests[-1]
    return request.method, request.url.raw_path.decode()


def test_a_tenant_from_its_making_to_its_grants(script: Any, client: Client) -> None:
    script.answers(ACME)
    made = client.tenants.create("acme", weight=2.0, requests_per_minute=5)
    assert made == Tenant("acme", 2.0, ACME["quotas"], ("sql",))
    client.tenants.change("acme", tokens_per_minute=None)
    client.tenants.grant("a/b", ["sql"])
    created, changed, granted = script.bodies()
    assert created == {"name": "acme", "weight": 2.0, "requests_per_minute": 5}
    assert changed == {"tokens_per_minute": None}
    assert granted == {"names": ["sql"]}
    assert sent(script) == ("POST", "/v1/admin/tenants/a%2Fb/grants")
    client.tenants.withdraw("acme", "*")
    assert sent(script) == ("DELETE", "/v1/admin/tenants/acme/grants/%2A")
    script.answers({"data": [ACME]})
    assert client.tenants.list() == (made,)


def test_keys(script: Any, client: Client) -> None:
    script.answers({"key": "tk-secret"})
    assert client.keys.create("acme", scopes=["infer", "adapters"]) == "tk-secret"
    assert script.bodies()[0]["scopes"] == ["infer", "adapters"]
    assert client.keys.rotate("tk-1", overlap_s=0) == "tk-secret"
    assert sent(script) == ("POST", "/v1/admin/keys/tk-1/rotate")
    script.answers(lambda: httpx2.Response(204))
    client.keys.revoke("tk-1")
    assert sent(script) == ("DELETE", "/v1/admin/keys/tk-1")
    script.answers({"data": [{"prefix": "tk-1", "tenant": "acme", "scopes": ["infer"]}]})
    assert client.keys.list("a b") == (Key("tk-1", "acme", scopes=("infer",)),)
    assert sent(script)[1] == "/v1/admin/keys?tenant=a%20b"


def test_usage_and_audit(script: Any, client: Client) -> None:
    script.answers({"data": [ROW]})
    assert client.usage() == (UsageRow(**ROW),)
    assert sent(script) == ("GET", "/v1/usage")
    client.tenants.usage("acme", since="2026-11-01")
    assert sent(script) == ("GET", "/v1/admin/usage?tenant=acme&since=2026-11-01")
    change = {"id": 1, "at": 2, "actor": "ops", "action": "tenant.create", "object": "acme"}
    script.answers({"data": [{**change, "before": None, "after": {"name": "acme"}}]})
    (row,) = client.tenants.audit(5)
    assert (row.action, row.after) == ("tenant.create", {"name": "acme"})


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Tenant, schema.TenantCard),
        (Key, schema.KeyCard),
        (UsageRow, schema.UsageRow),
        (AuditRow, schema.AuditRow),
    ],
)
def test_every_field_of_the_server_is_known(ours: type, theirs: Any) -> None:
    assert {field.name for field in fields(ours)} == theirs.model_fields.keys()
