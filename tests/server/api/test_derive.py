"""PUT /v1/adapters/NAME with `derive`: the recipes of turret.toml, while serving."""

from __future__ import annotations

import pytest

from turret_server.errors import Unprocessable

TIES = {"method": "ties", "sources": ["sql", {"name": "json", "weight": 0.5}], "density": 0.2}


async def put(client, name, **body):
    return await client.post(f"/v1/adapters/{name}", body, method="PUT")


@pytest.fixture
async def loaded(client):
    for name in ("sql", "json"):
        await put(client, name, path=name)
    return client


async def test_a_derived_adapter_is_served(loaded, engine, settings):
    answer = await put(loaded, "merged", derive=TIES | {"rank": 8})
    assert answer.status == 201
    card = answer.json
    assert (card["kind"], card["path"]) == (
        "derived",
        "ties(sql, json:0.5, density=0.2, rank=8)",
    )
    assert card["notes"] == ["its rank drops 1.0%"]
    assert (await loaded.chat(model="merged", max_tokens=1)).status == 200
    assert engine.requests[-1].adapters[0].digest == card["digest"]
    # What the engine reads: the sources as they are served, below the roots of their own loads.
    (derived,) = [d for d in engine.derived if d.method == "ties"]
    root = settings.adapter_roots[0]
    catalog = loaded.app.state.service.catalog
    for source, name in zip(derived.sources, ("sql", "json"), strict=True):
        assert (source.path, source.roots) == (str(root / name), (str(root),))
        assert source.digest == catalog.get(name).digest


async def test_it_replaces_what_had_the_name(loaded, engine):
    before = (await put(loaded, "merged", derive=TIES)).json
    again = await put(loaded, "merged", derive=TIES)
    assert (again.status, again.json["digest"]) == (200, before["digest"])
    other = await put(loaded, "merged", derive=TIES | {"density": 0.5})
    assert (other.status, other.json["digest"] in engine.loaded) == (200, True)
    assert before["digest"] not in engine.loaded
    # A source may be replaced by what is made of it.
    assert (await put(loaded, "sql", derive=TIES)).status == 200


async def test_sources_on_the_shelf_are_loaded(make_client, settings):
    client = make_client(adapter_dirs=settings.adapter_roots)
    answer = await put(client, "merged", derive={"method": "sum", "sources": ["sql", "json"]})
    assert answer.status == 201


@pytest.mark.parametrize(
    ("derive", "status", "param", "why"),
    [
        (TIES | {"method": "linear"}, 422, "derive", "'linear' is none of sum, svd, ties"),
        (TIES | {"density": 0}, 422, "derive", "density 0"),
        (TIES | {"density": 1.5}, 422, "derive", "density 1.5"),
        (TIES | {"rank": 0}, 422, "derive", "rank 0"),
        (TIES | {"seed": 1}, 422, "derive", "ties takes density, rank, not 'seed'"),
        ({"method": "ties", "sources": ["sql"]}, 422, "derive", "ties needs a density"),
        ({"method": "dare", "sources": ["sql"], "density": 0.5, "seed": -1}, 422, "derive", "seed"),
        (TIES | {"sources": [{"name": "sql", "weight": 17}]}, 422, "derive", "within ±16"),
        (TIES | {"sources": ["nope"]}, 404, "derive.sources[0]", "neither the base"),
        (TIES | {"sources": ["sql", "merged"]}, 422, "derive.sources[1]", "derived itself"),
        (TIES | {"sources": []}, 400, "derive.sources", ""),
        (TIES | {"sources": ["sql"] * 17}, 400, "derive.sources", ""),
        (TIES | {"density": "0.2"}, 400, "derive.density", ""),
        (TIES | {"densty": 0.2}, 400, "derive.densty", ""),
        ({"sources": ["sql"]}, 400, "derive.method", ""),
    ],
)
async def test_refused(loaded, derive, status, param, why):
    await put(loaded, "merged", derive=TIES)
    names = loaded.app.state.service.catalog.names()
    answer = await put(loaded, "other", derive=derive)
    error = answer.json["error"]
    assert (answer.status, error["param"]) == (status, param), answer.body
    assert why in error["message"]
    assert loaded.app.state.service.catalog.names() == names


async def test_a_table_is_no_weight_of_a_source(loaded):
    sources = [{"name": "sql", "weight": {"q_proj": 0.5}}]
    answer = await put(loaded, "other", derive=TIES | {"sources": sources})
    assert answer.status == 400


async def test_what_the_engine_refuses(loaded, engine):
    engine.load_error = Unprocessable("no adapter was derived", "it uses Offset", "Stack them.")
    answer = await put(loaded, "merged", derive=TIES)
    assert (answer.status, answer.json["error"]["param"]) == (422, "derive")
    assert answer.json["error"]["fix"] == "Stack them."


@pytest.mark.parametrize("name", ["demo", "a+b"])
async def test_names_that_no_adapter_may_have(loaded, name):
    answer = await put(loaded, name, derive=TIES)
    assert (answer.status, answer.json["error"]["param"]) in ((409, "name"), (400, "name"))


@pytest.mark.parametrize("body", [{}, {"path": "sql", "derive": TIES}], ids=["neither", "both"])
async def test_either_a_path_or_a_derivation(loaded, body):
    answer = await put(loaded, "other", **body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "path")
