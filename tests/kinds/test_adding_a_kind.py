"""The kind that docs/adding-a-kind.md builds, as it stands there, served."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from tests.kinds import hooks
from tests.kinds.lab import PROMPTS, assert_same

from turret_adapters import loading
from turret_adapters.registry import detect, discover
from turret_server.engine.messages import AdapterUse

GUIDE = Path(__file__).parents[2] / "docs" / "adding-a-kind.md"


def test_the_guides_kind_is_served(labs, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    known = {**discover(), "gain": scope["KIND"]}
    monkeypatch.setattr(loading, "detect", lambda files: detect(files, known))
    lab = labs("llama")
    gains = 1 + torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) / 2
    (tmp_path / "turret_adapter.json").write_text(json.dumps({"kind": "gain", "version": 1}))
    save_file({"gains": gains}, tmp_path / "adapter.safetensors")
    loaded = lab.load(tmp_path)
    assert (loaded.kind, loaded.primitives) == ("gain", ("Scale",))
    model = lab.model()
    for layer, row in zip(model.model.layers, gains, strict=True):
        wide = row.repeat_interleave(16)
        hooks.change_input(layer.self_attn.o_proj, lambda z, wide=wide: z * wide)
    (answer,) = lab.run([lab.ask(PROMPTS[0], AdapterUse(loaded.digest))])
    assert_same(answer, hooks.reference(model))
    lab.unload(loaded)
