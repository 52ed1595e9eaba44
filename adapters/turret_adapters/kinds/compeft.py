"""ComPEFT (Yadav et al., 2023): an adapter whose values are `rest`, `rest + s` or `rest - s`.

The container (compress/container.py) holds the adapter's own config. Its tensors are decoded, and
then the kind that reads such an adapter uncompressed compiles it: what that kind refuses is refused
here, too, and every check of shapes against base and config is its own.
"""

from __future__ import annotations

from dataclasses import replace

from turret_adapters import registry
from turret_adapters.compress.container import CONTAINER_NAME, DecodedFiles
from turret_adapters.files import AdapterFiles
from turret_adapters.spec import Kind, ModelShape, Program


def _detect(files: AdapterFiles) -> bool:
    return files.has(CONTAINER_NAME)


def _compile(files: AdapterFiles, shape: ModelShape) -> Program:
    decoded = DecodedFiles(files)
    inner = registry.detect(decoded)
    program = inner.compile(decoded, shape)
    return replace(program, kind="compeft", notes=(f"{inner.name}, compressed", *program.notes))


def _guess_shape(files: AdapterFiles) -> ModelShape:
    decoded = DecodedFiles(files)
    return registry.detect(decoded).guess_shape(decoded)


KIND = Kind(
    "compeft", _detect, _compile, _guess_shape, files=(CONTAINER_NAME,), reads_metadata=True
)
