"""The files of one adapter folder: JSON and safetensors, inside the allowed roots, never pickle."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from turret_adapters.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
    listing,
    quote,
)
from turret_adapters.gguf_file import GgufFile
from turret_adapters.strict_json import parse_object
from turret_adapters.tensor_file import TensorFile

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLimits:
    """What a folder may ask of the server before anything is known about it.

    Attributes:
        max_json_bytes: longest JSON file.
        max_json_depth: deepest nesting in a JSON file.
        max_header_bytes: longest safetensors header.
        max_tensors: most tensors in one file.
        max_file_bytes: longest safetensors file.
    """

    max_json_bytes: int = 1 << 20
    max_json_depth: int = 16
    max_header_bytes: int = 8 << 20
    max_tensors: int = 50_000
    max_file_bytes: int = 16 << 30


class AdapterFiles:
    """A folder opened for reading. Use `AdapterFiles.open` and a `with` block.

    Attributes:
        path: the folder, resolved.
        limits: bounds on the files.
    """

    def __init__(self, path: Path, roots: tuple[Path, ...] | None, limits: FileLimits):
        self.path = path
        self.limits = limits
        self._roots = roots
        self._open: dict[str, tuple[io.FileIO, os.stat_result]] = {}
        self._json: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, TensorFile] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        roots: Iterable[str | os.PathLike[str]] | None = None,
        limits: FileLimits | None = None,
    ) -> Self:
        """Open an adapter folder.

        Args:
            path: the folder.
            roots: folders that may be read; the folder and every file in it must lie inside one
                of them after symbolic links are followed. None allows everything.
            limits: bounds on the files.

        Raises:
            AdapterForbidden: outside the roots; tells nothing about what is there.
            AdapterNotFound: no such folder.
        """
        what = f"adapter {quote(os.fspath(path))} was not loaded"
        try:
            resolved = Path(path).resolve()
            allowed = None if roots is None else tuple(Path(root).resolve() for root in roots)
            _confine(resolved, allowed, what)
            is_folder, exists = resolved.is_dir(), resolved.exists()
        except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, a loop of links
            why = f"the path cannot be resolved ({quote(str(error))})"
            raise AdapterNotFound(what, why, "Name a folder that exists.") from None
        if not is_folder:
            why = "it is a file, not a folder" if exists else "there is no such folder"
            fix = "Name the folder that holds adapter_config.json."
            raise AdapterNotFound(what, why, fix)
        return cls(resolved, allowed, limits or FileLimits())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Tensors that were read stay valid."""
        for file, _ in self._open.values():
            file.close()
        self._open.clear()

    def has(self, name: str) -> bool:
        """Does the folder hold a file called `name`, or for "*.gguf", one that ends so?"""
        if name.startswith("*"):
            return bool(self._ending(name[1:]))
        try:
            return (self.path / name).is_file()
        except OSError:
            return False

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file; parsed once.

        Raises:
            AdapterNotFound: no such file.
            AdapterForbidden: a link that leaves the roots.
            AdapterMalformed: see `strict_json.parse_object`.
        """
        if name not in self._json:
            file, status = self._file(name, self.limits.max_json_bytes)
            try:
                data = file.read(status.st_size) or b""
            except OSError as error:
                what = f"adapter {quote(str(self.path))} was not loaded"
                why = f"reading {quote(name)} failed ({error.strerror})"
                raise AdapterMalformed(what, why, "Check the disk.") from error
            self._json[name] = parse_object(data, quote(name), max_depth=self.limits.max_json_depth)
        return self._json[name]

    def tensors(self, name: str) -> TensorFile:
        """A safetensors or GGUF file with a checked header; opened once.

        Args:
            name: of the file; "*.gguf" is the only one in the folder that ends so.

        Raises:
            AdapterNotFound: no such file.
            AdapterForbidden: a link that leaves the roots.
            AdapterUnsupported: the folder holds only a pickle.
            AdapterMalformed: see `TensorFile`.
        """
        if name not in self._tensors:
            if not self.has(name):
                self._refuse_pickle(name)
            found = self._only(name[1:]) if name.startswith("*") else name
            file, status = self._file(found, self.limits.max_file_bytes)
            of_format = GgufFile if found.endswith(".gguf") else TensorFile
            self._tensors[name] = of_format(
                file,
                found,
                status.st_size,
                max_header_bytes=self.limits.max_header_bytes,
                max_tensors=self.limits.max_tensors,
            )
        return self._tensors[name]

    def check_unchanged(self) -> None:
        """Call after the last read: what was validated, hashed and compiled is one version.

        Raises:
            AdapterMalformed: a file was written since it was opened.
        """
        for name, (file, before) in self._open.items():
            after = os.fstat(file.fileno())
            if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
                raise AdapterMalformed(
                    f"adapter {quote(str(self.path))} was not loaded",
                    f"{quote(name)} changed while it was read",
                    "Load it again when it is written; replace folders by renaming them.",
                )

    def names(self, limit: int = 20) -> list[str]:
        """Some of the file names in the folder, for messages."""
        with os.scandir(self.path) as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(limit), strict=False))

    def _ending(self, suffix: str) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                return sorted(e.name for e in entries if e.name.endswith(suffix) and e.is_file())
        except OSError:
            return []

    def _only(self, suffix: str) -> str:
        found = self._ending(suffix)
        if len(found) != 1:
            raise AdapterUnsupported(
                f"adapter {quote(str(self.path))} was not loaded",
                f"it holds {len(found)} files *{suffix}: {listing(found)}",
                "Put each into a folder of its own; a request may name several adapters.",
            )
        return found[0]

    def _file(self, name: str, max_bytes: int) -> tuple[io.FileIO, os.stat_result]:
        if name in self._open:
            return self._open[name]
        what = f"adapter {quote(str(self.path))} was not loaded"
        try:
            resolved = (self.path / name).resolve()
            _confine(resolved, self._roots, what)
            # O_NOFOLLOW: not a link that was put there since; O_NONBLOCK: opening a FIFO must not
            # wait for its writer.
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            file = io.FileIO(os.open(resolved, flags), "rb")
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise AdapterNotFound(
                what,
                f"{quote(name)} cannot be read ({reason})",
                "A PEFT adapter folder holds adapter_config.json and adapter_model.safetensors.",
            ) from None
        status = os.fstat(file.fileno())
        problem = None
        if not stat.S_ISREG(status.st_mode):
            problem = "is not a regular file"
        elif status.st_size > max_bytes:
            problem = f"is {status.st_size} bytes long; at most {max_bytes} are read"
        if problem:
            file.close()
            fix = "Check that the folder is an adapter."
            raise AdapterMalformed(what, f"{quote(name)} {problem}", fix)
        self._open[name] = file, status
        return file, status

    def _refuse_pickle(self, name: str) -> None:
        stem = name.removesuffix(".safetensors")
        for suffix in _PICKLE_SUFFIXES:
            if self.has(stem + suffix):
                raise AdapterUnsupported(
                    f"adapter {quote(str(self.path))} was not loaded",
                    f"{stem + suffix!r} is a pickle, which can run code; it is never read",
                    'Convert it where you trust it: python -c "import torch, safetensors.torch as '
                    f"s; s.save_file(torch.load('{stem}{suffix}', weights_only=True), '{name}')\"",
                )
        raise AdapterNotFound(
            f"adapter {quote(str(self.path))} was not loaded",
            f"it has no {name!r}; it holds {listing(self.names()) or 'nothing'}",
            f"Add {name!r}.",
        )


def _confine(path: Path, roots: tuple[Path, ...] | None, what: str) -> None:
    if roots is None or any(path.is_relative_to(root) for root in roots):
        return
    raise AdapterForbidden(
        what,
        "the path leads outside the folders that adapters may be loaded from",
        "Move the adapter below one of them, or restart with --adapter-root naming its folder.",
    )
