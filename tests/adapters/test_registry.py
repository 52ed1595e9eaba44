import pytest

from turret_adapters import registry
from turret_adapters.errors import AdapterNotFound, AdapterUnsupported
from turret_adapters.files import AdapterFiles
from turret_adapters.kinds.lora import KIND
from turret_adapters.spec import Kind


def detect(path, known=None):
    with AdapterFiles.open(path) as files:
        return registry.detect(files, known)


class EntryPoint:
    def __init__(self, value):
        self._value = value

    def load(self):
        return self._value


@pytest.fixture
def plugin(monkeypatch):
    """Install one plug-in."""

    def install(value):
        monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint(value)])
        registry.discover.cache_clear()

    yield install
    registry.discover.cache_clear()


def test_every_file_of_kinds_is_a_kind():
    assert registry.discover(plugins=False)["lora"] is KIND


def test_lora_is_detected(folder):
    assert detect(folder) is KIND


def test_plugins_are_kinds_like_any_other(folder, plugin):
    other = Kind("other", lambda files: True, KIND.compile, KIND.guess_shape)
    plugin(other)
    assert registry.discover()["other"] is other
    assert "other" not in registry.discover(plugins=False)
    with pytest.raises(AdapterUnsupported, match="several kinds: 'lora', 'other'"):
        detect(folder)


@pytest.mark.parametrize(
    ("value", "error"), [("no kind", TypeError), (KIND, ValueError)], ids=["type", "name"]
)
def test_a_bad_plugin_is_named(plugin, value, error):
    plugin(value)
    with pytest.raises(error):
        registry.discover()


def test_another_kind_is_named(lab, folder):
    lab.edit_config(folder, peft_type="NO_LORA")
    with pytest.raises(AdapterUnsupported, match="'NO_LORA'") as caught:
        detect(folder)
    assert "lora, " in str(caught.value)


@pytest.mark.parametrize("peft_type", [None, 3, ["LORA"], "lora"])
def test_odd_types_are_no_kind(lab, folder, peft_type):
    lab.edit_config(folder, peft_type=peft_type)
    with pytest.raises(AdapterUnsupported):
        detect(folder)


def test_a_missing_config_is_told_with_what_was_looked_for(folder):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(AdapterNotFound) as caught:
        detect(folder)
    assert "'adapter_config.json'" in caught.value.why
    assert "'adapter_model.safetensors'" in caught.value.why


def test_an_empty_folder(tmp_path):
    with pytest.raises(AdapterNotFound, match="holds nothing"):
        detect(tmp_path)
