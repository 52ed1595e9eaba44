from turret_adapters.shelf import AdapterShelf


def shelf_of(tmp_path, *names):
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    return AdapterShelf([tmp_path])


def test_folders_are_names(tmp_path):
    shelf = shelf_of(tmp_path, "sql", "dates", ".hidden", "not+a+name")
    (tmp_path / "a-file").write_text("")
    assert shelf.names() == ["dates", "sql"]
    assert shelf.find("sql") == (tmp_path / "sql", tmp_path)


def test_what_appears_later_is_offered(tmp_path):
    shelf = shelf_of(tmp_path, "sql")
    assert (shelf.names(), shelf.find("dates")) == (["sql"], None)
    (tmp_path / "dates").mkdir()
    assert shelf.names() == ["dates", "sql"]
    assert shelf.find("dates") is not None


def test_no_name_leads_out_of_the_shelf(tmp_path):
    shelf = shelf_of(tmp_path / "shelf", "sql")
    (tmp_path / "secret").mkdir()
    shelf = AdapterShelf([tmp_path / "shelf"])
    for name in ("../secret", "..", ".", "", "sql/../../secret", "/etc", "a\x00b"):
        assert shelf.find(name) is None


def test_the_first_of_two_shelves_is_meant(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "sql").mkdir(parents=True)
    shelf = AdapterShelf([tmp_path / "one", tmp_path / "two"])
    assert shelf.find("sql") == (tmp_path / "one" / "sql", tmp_path / "one")
    assert shelf.names() == ["sql"]


def test_a_shelf_that_was_removed_offers_nothing(tmp_path):
    shelf = shelf_of(tmp_path / "gone", "sql")
    (tmp_path / "gone" / "sql").rmdir()
    (tmp_path / "gone").rmdir()
    shelf = AdapterShelf([tmp_path / "gone"])
    assert (shelf.names(), shelf.find("sql")) == ([], None)
