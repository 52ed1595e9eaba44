"""From what the user calls a model to a local folder that holds it."""

from pathlib import Path

from turret_server.errors import StartupError, TurretError
from turret_server.sources.hub import download, parse_repo

DEMO = "demo"

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
# "*" also matches "/": sub-folders hold other formats, "consolidated" repeats the weights.
_UNWANTED = ["*/*", "consolidated*.safetensors", "adapter_model.safetensors"]


def resolve_model(spec: str, *, progress: bool) -> Path:
    """Return the local folder of a model, downloading or converting it where need be.

    Args:
        spec: An existing folder, a Hugging Face id such as "Qwen/Qwen3-0.6B", with a revision
            "Qwen/Qwen3-0.6B@main", or "demo". A folder goes before an id of the same name;
            "./demo" is the folder.
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
    repo = parse_repo(spec)
    if folder.exists() or repo is None:
        raise StartupError(
            f"model {spec!r} was not found",
            "it is neither an existing folder nor a Hugging Face id (owner/name)",
            f"Name a folder with config.json and *.safetensors, an id, or {DEMO!r}.",
        )
    repo_id, revision = repo
    try:
        folder = download(
            repo_id, "model", _WANTED, unwanted=_UNWANTED, revision=revision, progress=progress
        )
    except TurretError as error:
        raise StartupError(error.what, error.why, error.fix) from error
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
