"""From what the user calls a model to a local folder that holds it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turret_server.errors import StartupError

DEMO = "demo"

# A Hugging Face id: "name" or "owner/name".
_REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

# What a model needs, and nothing that could run: no pickles (.bin, .pt), no Python files.
_WANTED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors.index.json",
    "*.safetensors",
]
_ADAPTER_WANTED = ["*.json", "*.safetensors"]
# "*" also matches "/": sub-folders hold other formats, "consolidated" repeats the weights.
_UNWANTED = ["*/*", "consolidated*.safetensors", "adapter_model.safetensors"]


def resolve_model(spec: str, *, progress: bool) -> Path:
    """Return the local folder of a model, downloading or converting it where need be.

    Args:
        spec: An existing folder, a Hugging Face id such as "Qwen/Qwen3-0.6B", or "demo". A folder
            goes before an id of the same name; "./demo" is the folder.
        progress: Draw progress bars on stderr.

    Returns:
        A folder with `config.json`, `tokenizer.json` and `*.safetensors`; where the model has
        them, also `generation_config.json`, `tokenizer_config.json` and a chat template.

    Raises:
        StartupError: There is no such model, it cannot be reached, or it lacks a file.
    """
    if spec == DEMO:
        # Imported here: only the demo model needs the converter.
        from turret_server.demo import demo_model

        return demo_model(progress=progress)
    folder = Path(spec).expanduser()
    if spec and folder.is_dir():
        return _checked(folder.absolute(), spec)
    if folder.exists() or not _REPO_ID.fullmatch(spec) or spec.startswith("."):
        raise StartupError(
            f"model {spec!r} was not found",
            "it is neither an existing folder nor a Hugging Face id (owner/name)",
            f"Name a folder with config.json and *.safetensors, an id, or {DEMO!r}.",
        )
    folder = _download(spec, "model", _WANTED, ignore=_UNWANTED, progress=progress)
    return _checked(folder, spec)


def _checked(folder: Path, spec: str) -> Path:
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise StartupError(
            f"model {spec!r} cannot be served",
            f"its folder lacks {', '.join(missing)} (pickled weights are never read)",
            "Save it with transformers: model.save_pretrained(folder) and "
            "tokenizer.save_pretrained(folder) write these files.",
        )
    return folder


def resolve_adapter(spec: str, *, progress: bool) -> Path:
    """Return the local folder of an adapter: an existing folder, or a Hugging Face id.

    Args:
        spec: folder or id.
        progress: draw progress bars on stderr.

    Raises:
        StartupError: there is no such adapter, or it cannot be reached.
    """
    folder = Path(spec).expanduser()
    if spec and (folder.exists() or not _REPO_ID.fullmatch(spec) or spec.startswith(".")):
        return folder.absolute()  # what is wrong with it, the loader says
    return _download(spec, "adapter", _ADAPTER_WANTED, ignore=("*/*",), progress=progress)


def _download(
    repo_id: str, noun: str, wanted: Sequence[str], *, ignore: Sequence[str], progress: bool
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from tqdm.auto import tqdm

    class Silent(tqdm):
        """tqdm as the hub client drives it, drawing nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **(kwargs | {"disable": True}))

    try:
        return Path(
            snapshot_download(
                repo_id,
                allow_patterns=list(wanted),
                ignore_patterns=list(ignore),
                tqdm_class=None if progress else Silent,
            )
        )
    except GatedRepoError as error:
        why = "its owner asks for an accepted licence and a token"
        fix = "Accept it on its page, then run: hf auth login"
        cause: Exception = error
    except (RepositoryNotFoundError, HFValidationError) as error:
        why = f"the Hugging Face hub has no such public {noun}"
        fix = "Check the id (owner/name); for a private one run: hf auth login"
        cause = error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        why = f"the Hugging Face hub cannot be reached and its cache lacks the {noun} ({reason})"
        fix = f"Check the network or HF_ENDPOINT, name a local folder, or use {DEMO!r}."
        cause = error
    raise StartupError(f"{noun} {repo_id!r} was not downloaded", why, fix) from cause
