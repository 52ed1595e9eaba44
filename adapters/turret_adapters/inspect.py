"""What an adapter folder holds, without its base model: `turret adapters inspect PATH`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from turret_adapters.components import LowRank
from turret_adapters.digest import content_digest
from turret_adapters.errors import AdapterError
from turret_adapters.files import AdapterFiles
from turret_adapters.loading import StrPath
from turret_adapters.registry import detect
from turret_adapters.spec import Kind, Program


def describe(path: StrPath) -> dict[str, Any]:
    """Compile the adapter against the smallest base that it fits, and report what came out.

    Args:
        path: the folder.

    Returns:
        JSON values. Always: path, and refusal ({what, why, fix}, or None where it would be served
        on a base of its shape). As far as they could be found out: kind, digest, num_tensors,
        num_bytes and dtypes as stored, base_model, num_parameters, notes, and modules with their
        ranks and layers: {"q_proj": {"ranks": [8], "layers": [0, 1]}}.
    """
    report: dict[str, Any] = {"path": str(path), "refusal": None}
    try:
        with AdapterFiles.open(path) as files:
            report["path"] = str(files.path)
            kind = detect(files)
            report["kind"] = kind.name
            report |= _describe_files(kind, files)
            report |= _describe_program(kind.compile(files, kind.guess_shape(files)))
    except AdapterError as error:
        report["refusal"] = {"what": error.what, "why": error.why, "fix": error.fix}
    return report


def _describe_files(kind: Kind, files: AdapterFiles) -> dict[str, Any]:
    names = [name for name in kind.files_in(files) if not name.endswith(".json")]
    infos = [info for name in names for info in files.tensors(name).infos.values()]
    return {
        "num_tensors": len(infos),
        "num_bytes": sum(info.num_bytes for info in infos),
        "dtypes": sorted({str(info.dtype).removeprefix("torch.") for info in infos}),
        "digest": content_digest(kind, files),
    }


def _describe_program(program: Program) -> dict[str, Any]:
    ranks: defaultdict[str, set[int]] = defaultdict(set)
    layers: defaultdict[str, set[int]] = defaultdict(set)
    for component in program.components:
        module = str(component.site.module)
        if component.site.layer >= 0:
            layers[module].add(component.site.layer)
        if isinstance(component, LowRank):
            ranks[module].add(component.rank)
    return {
        "base_model": program.base_model,
        "num_parameters": program.num_parameters,
        "modules": {
            module: {"ranks": sorted(ranks[module]), "layers": sorted(layers[module])}
            for module in program.targets
        },
        "notes": list(program.notes),
    }
