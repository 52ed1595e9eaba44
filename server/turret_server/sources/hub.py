"""Snapshots of Hugging Face repositories, as far as they can hold nothing that runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turret_server.errors import FetchFailed, Forbidden, NotFound, Unprocessable

# "name", "owner/name", and behind "@" a branch, a tag or a commit.
_REPO_ID = re.compile(r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:@([\w][\w./-]*))?", re.ASCII)


def parse_repo(spec: str) -> tuple[str, str | None] | None:
    """(id, revision) of "owner/name@revision"; None where it is no Hugging Face id."""
    found = _REPO_ID.fullmatch(spec)
    if found is None or ".." in spec:
        return None
    return found[1], found[2]


def download(
    repo_id: str,
    noun: str,
    wanted: Sequence[str],
    *,
    unwanted: Sequence[str] = (),
    revision: str | None = None,
    max_bytes: int | None = None,
    progress: bool = False,
) -> Path:
    """Download a snapshot into the hub's cache, or find it there.

    Args:
        repo_id: "owner/name".
        noun: "model" or "adapter", for messages.
        wanted: patterns of the files to take.
        unwanted: patterns of files to leave, though wanted.
        revision: branch, tag or commit; None for the main branch.
        max_bytes: of the files together; asked of the hub before anything is downloaded.
        progress: draw progress bars on stderr.

    Raises:
        NotFound: no such repository or revision.
        Forbidden: its owner asks for a licence to be accepted.
        Unprocessable: its files are larger than allowed.
        FetchFailed: the hub cannot be reached, and its cache lacks the files.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from tqdm.auto import tqdm

    class Silent(tqdm):
        """tqdm as the hub client drives it, drawing nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": list(wanted),
        "ignore_patterns": list(unwanted),
        "tqdm_class": None if progress else Silent,
    }
    named = repo_id if revision is None else f"{repo_id}@{revision}"
    what = f"{noun} {named!r} was not downloaded"
    try:
        if max_bytes is not None:
            options |= _checked(repo_id, revision, wanted, unwanted, max_bytes, what)
        return Path(snapshot_download(repo_id, **options))
    except GatedRepoError as error:
        raise Forbidden(
            what,
            "its owner asks for an accepted licence and a token",
            "Accept it on its page, then run: hf auth login",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise NotFound(
            what,
            f"the Hugging Face hub has no such public {noun}",
            "Check the id (owner/name); for a private one run: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise NotFound(what, "it has no such revision", "Check it on its page.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FetchFailed(
            what,
            f"the Hugging Face hub cannot be reached and its cache lacks the {noun} "
            f"({_first_line(error)})",
            "Check the network or HF_ENDPOINT, or name a local folder.",
        ) from error


def _checked(
    repo_id: str,
    revision: str | None,
    wanted: Sequence[str],
    unwanted: Sequence[str],
    max_bytes: int,
    what: str,
) -> dict[str, Any]:
    """Options that download the very commit whose sizes were checked, or read the cache alone."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import filter_repo_objects

    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # offline: of the client's HTTP library, which differs by version
        # What is in the cache was let in before.
        return {"local_files_only": True}
    taken = filter_repo_objects(
        info.siblings or (),
        allow_patterns=list(wanted),
        ignore_patterns=list(unwanted),
        key=lambda sibling: sibling.rfilename,
    )
    size = sum(sibling.size or 0 for sibling in taken)
    if size > max_bytes:
        raise Unprocessable(
            what,
            f"its files are {size:,} bytes, and {max_bytes:,} are allowed",
            "Download it yourself and name the folder.",
        )
    return {"revision": info.sha}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
