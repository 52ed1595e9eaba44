"""From what the user calls an adapter to a local folder that holds it.

A source is a folder, an archive, a Hugging Face id ("owner/name", "owner/name@revision", or as a
URL hf://owner/name) or a URL that fsspec knows. `AdapterSources.locate` decides what it is and
whether it may be read: quick, and without a network. `fetch` does what takes time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from turret_server.errors import BadRequest, Forbidden, NotFound
from turret_server.sources import archive, hub
from turret_server.sources.cached import WANTED, FetchLimits, hold, shrink
from turret_server.sources.urls import is_below, url_problem

_HUB = "hf://"


@dataclass(frozen=True, slots=True)
class Located:
    """An adapter that may be read, wherever it is.

    Attributes:
        kind: what it is.
        name: its path with every link followed, its Hugging Face id, or its URL.
        roots: for a folder: what links in it may lead to, None for anything.
    """

    kind: Literal["folder", "archive", "hub", "url"]
    name: str
    roots: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class LocalAdapter:
    """A folder with an adapter.

    Attributes:
        source: where it comes from, for people.
        folder: where it lies.
        roots: what links in it may lead to, None for anything.
    """

    source: str
    folder: str
    roots: tuple[str, ...] | None


class AdapterSources:
    """What may be read, and the reading of it.

    Args:
        roots: folders that run-time loads may read.
        remotes: URL prefixes that run-time loads may fetch from: "hf://owner", "s3://bucket/x".
        limits: bounds on what is fetched.
    """

    def __init__(
        self,
        roots: Sequence[Path] = (),
        remotes: Sequence[str] = (),
        limits: FetchLimits | None = None,
    ) -> None:
        self.allow(roots, remotes)
        self._limits = limits or FetchLimits()

    def allow(self, roots: Sequence[Path], remotes: Sequence[str]) -> None:
        """Let run-time loads read these roots and remotes from now on, and no others."""
        self.roots = [root.expanduser().resolve() for root in roots]
        self._remotes = tuple(remotes)

    def locate(self, source: str, *, confined: bool, below: str = "") -> Located:
        """Find out what a source is.

        Args:
            source: as the user says it. A folder goes before a Hugging Face id of the same name.
            confined: it comes over the network: what is not below a root or an allowed URL is
                refused. False for the operator's own.
            below: a folder that stands in every root for that root.

        Raises:
            BadRequest: it is malformed.
            Forbidden: it leaves the roots and the allowed URLs; tells nothing about what is there.
            NotFound: no such folder or archive.
        """
        if source.startswith("file://"):
            source = unquote(source.removeprefix("file://"))
        if not source or "\x00" in source or len(source) > 4096:
            raise _malformed(source, "it is empty or malformed")
        if "://" in source:
            return self._remote(source, confined=confined)
        if not confined:
            return self._own(source)
        repo = hub.parse_repo(source)
        try:
            return self._below_roots(source, [root / below for root in self.roots])
        except NotFound:
            if repo is None or not self._allows(_HUB + source):
                raise
            return self._remote(_HUB + source, confined=True)

    def fetch(self, located: Located, *, progress: bool = False) -> LocalAdapter:
        """The adapter's folder, downloaded or unpacked where need be. May take minutes.

        In the cache it is held: `turret_server.sources.cached.release` is the caller's to call.

        Args:
            located: by `locate`.
            progress: draw progress bars on stderr.

        Raises:
            NotFound, Forbidden, BadRequest, Unprocessable, FetchFailed.
        """
        name = located.name
        match located.kind:
            case "folder":
                hold(name)  # it may lie in the cache; where it is gone, the loader says so
                return LocalAdapter(name, name, located.roots)
            case "archive":
                folder = archive.unpack(Path(name), self._limits)
            case "hub":
                folder = self._snapshot(name, progress=progress)
                # Its files are links to the blobs of the repository.
                return LocalAdapter(_HUB + name, str(folder), (str(folder.parents[1]),))
            case "url":
                from turret_server.sources.remote import fetch  # slow to import

                folder = fetch(name, self._limits)
        if self._limits.cache_bytes is not None:
            shrink(self._limits.cache_bytes)
        return LocalAdapter(name, str(folder), (str(folder),))

    def _snapshot(self, name: str, *, progress: bool) -> Path:
        repo = hub.parse_repo(name)
        assert repo is not None, "locate has parsed it"
        repo_id, revision = repo
        patterns = [f"*{suffix}" for suffix in WANTED]
        return hub.download(
            repo_id,
            "adapter",
            patterns,
            unwanted=("*/*",),
            revision=revision,
            max_bytes=self._limits.max_bytes,
            progress=progress,
        )

    def _own(self, source: str) -> Located:
        path = Path(source).expanduser()
        if not path.exists() and hub.parse_repo(source):
            return Located("hub", source)
        path = path.resolve()  # what is wrong with it, the loader says
        return Located("archive" if _is_archive(path) else "folder", str(path))

    def _remote(self, url: str, *, confined: bool) -> Located:
        name = url.removeprefix(_HUB) if url.startswith(_HUB) else None
        problem = url_problem(url) if name is None else None
        if name is not None and hub.parse_repo(name) is None:
            problem = "hf://owner/name names a repository, hf://owner/name@revision a version of it"
        if problem is not None:
            raise _malformed(url, problem)
        if confined and not self._allows(url):
            raise Forbidden(
                f"{url[:256]!r} is not allowed",
                "run-time loads fetch from the server's --adapter-remote only"
                + ("" if self._remotes else ", and it names none"),
                f"Restart with --adapter-remote {url.partition('://')[0]}://…, or put the adapter "
                "below an adapter root.",
                param="path",
            )
        return Located("url", url) if name is None else Located("hub", name)

    def _allows(self, url: str) -> bool:
        # A version of an allowed repository is allowed, too.
        bare = url.partition("@")[0] if url.startswith(_HUB) else url
        return any(is_below(bare, prefix) or url == prefix for prefix in self._remotes)

    def _below_roots(self, path: str, roots: Sequence[Path]) -> Located:
        """What lies at a path, which must be below a root after every link is followed."""
        given = Path(path).expanduser() if path.startswith("~/") else Path(path)
        tried = [given] if given.is_absolute() else [root / given for root in roots]
        outside = True
        for candidate in tried:
            try:
                found = candidate.resolve()
                exists = found.exists()
            except (OSError, ValueError, RuntimeError) as error:  # a loop, a name too long
                raise _malformed(path, str(error)) from error
            if any(found.is_relative_to(root) for root in roots):
                outside = False
                if exists and _is_archive(found):
                    return Located("archive", str(found))
                if exists:  # links inside are the engine's to check: it opens the files
                    return Located("folder", str(found), tuple(map(str, roots)))
        if outside:
            # Says nothing about what exists out there.
            raise Forbidden(
                f"the path {path[:256]!r} is not allowed",
                "adapters are loaded from the adapter roots only",
                "Move the folder there, or restart with --adapter-root.",
                param="path",
            )
        raise NotFound(
            f"there is no adapter at {path[:256]!r}",
            "no such folder exists below the adapter roots",
            "Check the path.",
            param="path",
        )


def _is_archive(path: Path) -> bool:
    return archive.is_archive(path.name) and path.is_file()


def _malformed(source: str, why: str) -> BadRequest:
    return BadRequest(
        f"{source[:256]!r} names no adapter",
        why,
        "Name a folder, an archive, a Hugging Face id or a URL.",
        param="path",
    )
