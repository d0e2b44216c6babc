"""Recipes that train the small models under `models/`: `python -m omnidecode.train RECIPE --out DIR`.

Training needs torch (the extra `train`); the engine never does. Tasks, judges and the alphabet import without torch,
so that benchmarks and tests can use them.
"""

from __future__ import annotations

from typing import Any

#: Recipe name -> module of this package that holds it in its `RECIPES`.
RECIPES: dict[str, str] = {
    "sudoku-diffusion": "sudoku",
    "sudoku-ar": "sudoku",
    "chains-diffusion": "chains",
    "chains-block": "chains",
    "chains-ar": "chains",
    "chains-long-ar": "chains",
    "chains-long-diffusion": "chains",
    "countdown-ar": "countdown",
    "sums-ar": "sums",
    "sums-value": "value",
    "rank-first": "rank",
    "rank-list": "rank",
    "prosqa-coconut": "prosqa",
    "prosqa-coconut-last": "prosqa",
    "prosqa-cot": "prosqa",
    "draft": "draft",
    "kangaroo": "kangaroo",
}


def find(name: str) -> Any:
    """The recipe called `name`. Raises `ValueError` that lists the known names; needs no torch."""
    from importlib import import_module

    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return import_module(f"{__name__}.{RECIPES[name]}").RECIPES[name]


def require_torch() -> Any:
    """The torch module. Raises `ImportError` that says which extra to install."""
    try:
        import torch
    except ImportError as missing:
        raise ImportError("training needs torch: install the extra with `pip install 'omnidecode[train]'`") from missing
    return torch
