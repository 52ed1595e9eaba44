from __future__ import annotations

import pytest

from turret_adapters.catalog import AdapterRecord, Catalog
from turret_adapters.derivation import Derivation, Source
from turret_server.engine.messages import AdapterUse
from turret_server.errors import BadRequest, NotFound, Unprocessable
from turret_server.pipeline.recipe import MAX_ADAPTERS, RecipeBook


def put(catalog: Catalog, name: str, digest: str, primitives: tuple[str, ...] = ()) -> None:
    catalog.put(
        AdapterRecord(
            name=name,
            digest=digest,
            path=f"/adapters/{name}",
            kind="lora",
            rank=8,
            targets=("q_proj", "v_proj"),
            num_layers={"": 4},
            num_parameters=1,
            num_bytes=2,
            base_model=None,
            loaded_at=0.0,
            primitives=primitives,
        )
    )


@pytest.fixture
def book() -> RecipeBook:
    catalog = Catalog()
    for name in ("sql", "json", "dates"):
        put(catalog, name, f"digest-{name}")
    return RecipeBook(catalog, ["demo", "org/demo:latest"], {"strict-sql": "sql:0.5+json"})


def test_base_names_mean_no_adapters(book: RecipeBook) -> None:
    for name in (None, "demo", "org/demo:latest"):
        recipe = book.resolve(name)
        assert recipe.adapters == ()
        assert recipe.label == "demo"
    assert book.resolve("org/demo:latest").model == "org/demo:latest"
    assert book.resolve(None).model == "demo"


def test_an_adapter_name(book: RecipeBook) -> None:
    recipe = book.resolve("sql")
    assert recipe.adapters == (AdapterUse("digest-sql", 1.0),)
    assert (recipe.model, recipe.label, recipe.digests) == ("sql", "sql", ["digest-sql"])


def test_sums_and_weights_in_a_name(book: RecipeBook) -> None:
    recipe = book.resolve("sql:0.7+json")
    assert recipe.adapters == (AdapterUse("digest-json", 1.0), AdapterUse("digest-sql", 0.7))
    assert (recipe.model, recipe.label) == ("sql:0.7+json", "composed")
    assert book.resolve("sql:-1").adapters == (AdapterUse("digest-sql", -1.0),)


def test_the_order_of_names_changes_nothing(book: RecipeBook) -> None:
    one, other = book.resolve("sql:0.7+json"), book.resolve("json", [("sql", 0.7)])
    assert (one.adapters, one.digest) == (other.adapters, other.digest)


def test_named_recipes(book: RecipeBook) -> None:
    recipe = book.resolve("strict-sql")
    assert recipe.adapters == (AdapterUse("digest-json", 1.0), AdapterUse("digest-sql", 0.5))
    assert (recipe.model, recipe.label) == ("strict-sql", "strict-sql")


def test_listed_adapters_are_stacked_on_the_model(book: RecipeBook) -> None:
    recipe = book.resolve("sql", [("json", 0.5), ("dates", 1)])
    assert [(u.digest, u.weight) for u in recipe.adapters] == [
        ("digest-dates", 1.0),
        ("digest-json", 0.5),
        ("digest-sql", 1.0),
    ]
    assert recipe.label == "composed"


def test_a_table_of_weights_is_spelt_out_for_every_module(book: RecipeBook) -> None:
    recipe = book.resolve("demo", [("sql", {"v_proj": 0.5})])
    assert recipe.adapters[0].weight == {"q_proj": 1.0, "v_proj": 0.5}


def test_tables_of_the_same_meaning_are_the_same_recipe(book: RecipeBook) -> None:
    """They share keys and values in the cache, and a number costs a step less than a table."""
    for table, weight in (
        ({"v_proj": 0.5, "layers.0-3": 0.25}, {"q_proj": 0.25, "v_proj": 0.5}),
        ({"*": 0.5}, 0.5),
        ({}, 1.0),
    ):
        recipe = book.resolve("demo", [("sql", table)])
        assert recipe.adapters[0].weight == weight
        assert recipe.digest == book.resolve("demo", [("sql", weight)]).digest


def test_weight_0_is_not_there(book: RecipeBook) -> None:
    for weight in (0, -0.0, {"q_proj": 0, "v_proj": 0}, {"layers.0-3": 0}):
        recipe = book.resolve("json", [("sql", weight)])
        assert recipe.digests == ["digest-json"]
        assert recipe.digest == book.resolve("json").digest
    assert book.resolve("sql:0").digest == book.resolve("demo").digest
    with pytest.raises(BadRequest, match="named twice"):
        book.resolve("sql:0+sql")


def test_a_table_without_meaning_names_its_place(book: RecipeBook) -> None:
    with pytest.raises(Unprocessable) as caught:
        book.resolve("demo", [("sql", {"layers.4": 1.0})])
    assert caught.value.param == "adapters[0].weight"
    assert "'sql'" in caught.value.what
    assert "from 0 to 3" in caught.value.why
    assert caught.value.fix


def test_the_digest_tells_recipes_apart_by_content(book: RecipeBook) -> None:
    assert book.resolve("sql").digest == book.resolve("demo", [("sql", 1)]).digest
    different = {book.resolve(n).digest for n in ("demo", "sql", "sql:0.5", "json", "sql+json")}
    assert len(different) == 5
    put(book.catalog, "sql", "other content")
    assert book.resolve("sql").digest not in different


@pytest.mark.parametrize("model", ["sqll", "", "gpt-4", "demo+sql", "sql+", "SQL", "x" * 5000])
def test_unknown_models_are_not_served_by_the_base(book: RecipeBook, model: str) -> None:
    with pytest.raises(NotFound) as caught:
        book.resolve(model)
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("demo+sql", "'demo' is no adapter: it is the base model"),
        ("strict-sql+dates", "'strict-sql' is no adapter: it is a recipe.*adapters: sql:0.5"),
        ("small", "'small' is no model: it is an auxiliary model"),
        ("sql+small", "'small' is no model: it is an auxiliary model"),
    ],
)
def test_what_is_served_but_no_adapter_is_not_said_to_be_missing(model: str, why: str) -> None:
    catalog = Catalog()
    for name in ("sql", "json", "dates"):
        put(catalog, name, f"digest-{name}")
    book = RecipeBook(catalog, ["demo"], {"strict-sql": "sql:0.5+json"}, auxiliaries=["small"])
    with pytest.raises(NotFound, match=why):
        book.resolve(model)


def test_close_names_are_suggested(book: RecipeBook) -> None:
    with pytest.raises(NotFound, match="Did you mean 'sql'"):
        book.resolve("sqll")


def test_close_names_are_suggested_among_thousands(book: RecipeBook) -> None:
    for i in range(2000):
        put(book.catalog, f"customer-{i}", f"digest-{i}")
    with pytest.raises(NotFound, match="Did you mean 'sql'"):
        book.resolve("sqll")


def test_unknown_listed_adapter_names_its_place(book: RecipeBook) -> None:
    with pytest.raises(NotFound) as caught:
        book.resolve("demo", [("sql", 1), ("nope", 1)])
    assert caught.value.param == "adapters[1]"


@pytest.mark.parametrize(
    ("model", "adapters", "param"),
    [
        ("sql+sql", [], "model"),
        ("sql", [("sql", 1)], "adapters[0]"),
        ("sql:x", [], "model"),
        ("sql:nan", [], "model"),
        ("sql:inf", [], "model"),
        ("sql:17", [], "model"),
        ("demo", [("sql", -17)], "adapters[0].weight"),
        ("demo", [("sql", {"q_proj": float("nan")})], "adapters[0].weight"),
        ("+".join(["sql"] * (MAX_ADAPTERS + 1)), [], "model"),
    ],
)
def test_refused(book: RecipeBook, model: str, adapters: list, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        book.resolve(model, adapters)
    assert caught.value.param == param


def test_two_names_of_one_content_are_one_adapter(book: RecipeBook) -> None:
    put(book.catalog, "sql2", "digest-sql")
    with pytest.raises(BadRequest, match="named twice"):
        book.resolve("sql+sql2")


@pytest.mark.parametrize("weight", [0.5, -1.0, 2.0, {"q_proj": 0.5}, {"layers.0": 0}])
def test_a_threshold_is_on_or_off(book: RecipeBook, weight) -> None:
    put(book.catalog, "sparse", "digest-sparse", ("LowRank", "Threshold"))
    with pytest.raises(Unprocessable) as caught:
        book.resolve("demo", [("sparse", weight)])
    assert caught.value.param == "adapters[0].weight"
    assert all((caught.value.what, caught.value.why, caught.value.fix))
    assert book.resolve("demo", [("sparse", 0.0)]).adapters == ()
    assert book.resolve("demo", [("sparse", 1.0)]).adapters == (AdapterUse("digest-sparse", 1.0),)


def test_a_threshold_in_a_model_name_is_on_or_off(book: RecipeBook) -> None:
    put(book.catalog, "sparse", "digest-sparse", ("Threshold",))
    assert book.resolve("sparse+sql:0.5").adapters[0].weight == 1.0
    with pytest.raises(Unprocessable) as caught:
        book.resolve("sparse:0.5+sql")
    assert caught.value.param == "model"


def test_named_stacks_may_weigh_modules() -> None:
    catalog = Catalog()
    put(catalog, "sql", "digest-sql")
    book = RecipeBook(catalog, ["demo"], {"soft": (("sql", {"v_proj": 0.5}), ("later", 1.0))})
    assert book.missing("soft") == ["later"]
    with pytest.raises(NotFound, match="'later'"):
        book.resolve("soft")
    put(catalog, "later", "digest-later")
    assert book.missing("soft") == []
    assert book.resolve("soft").adapters == (
        AdapterUse("digest-later", 1.0),
        AdapterUse("digest-sql", {"q_proj": 1.0, "v_proj": 0.5}),
    )


def test_sources_of_a_derivation_are_resolved_to_folders(book: RecipeBook) -> None:
    wanted = Derivation(method="sum", sources=(Source("sql", 0.5), Source("json")))
    found = book.resolve_sources(wanted)
    assert found.sources == (
        Source("/adapters/sql", 0.5, digest="digest-sql"),
        Source("/adapters/json", digest="digest-json"),
    )
    with pytest.raises(NotFound, match="'nope'"):
        book.resolve_sources(Derivation(method="sum", sources=(Source("nope"),)))
