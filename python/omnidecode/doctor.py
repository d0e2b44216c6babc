"""What this machine and this installation offer, as a dictionary."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

from . import _core
from ._strategy import registry
from .errors import ModelError
from .hub import locate

__all__ = ["doctor"]

_SWITCHES = (
    "OMNIDECODE_NUM_THREADS",
    "OMP_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "OMNIDECODE_PIN_THREADS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "CUDA_VISIBLE_DEVICES",
    "OMNIDECODE_KERNELS",
    "OMNIDECODE_CUDA_LIBRARIES",
    "OMNIDECODE_CUDA_EAGER",
)


def doctor(model: str | None = None) -> dict[str, Any]:
    """Versions, processor features, optional packages, environment switches, and whether ``model`` can be found.

    Nothing is downloaded and no model is opened.
    """
    packages: dict[str, str | None] = {}
    for name in ("numpy", "huggingface_hub", "torch"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    where: dict[str, Any] = {"path": None, "error": None}
    try:
        where["path"] = str(locate(model, local_files_only=True))
    except ModelError as error:
        where["error"] = str(error)
    return {
        "omnidecode": {"version": _core.__version__, "module": _core.__file__},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            **json.loads(_core.machine()),
        },
        "cuda": json.loads(_core.cuda()),
        "packages": packages,
        "environment": {name: os.environ.get(name) for name in _SWITCHES},
        "strategies": {"count": len(registry()), "names": [entry["name"] for entry in registry()]},
        "model": where,
    }
