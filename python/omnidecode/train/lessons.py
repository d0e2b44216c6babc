"""What a target says about text that it wrote, read out of this engine: what drafters are taught with.

One forward a text (sheet 00-drafter-training, stage 3). Kept in one file beside the text, for further runs and recipes.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Choices of the target that are taught at a place, the likeliest. The rest of its law, some hundredths, is left out.
TOP = 64


@dataclass(frozen=True)
class Lesson:
    """One text. Row j of the written part speaks of written token j."""

    #: Token ids of the whole text.
    ids: Any
    #: Rows whose logits speak of written tokens: the prompt's last, up to the last but one.
    rows: slice
    #: The target's likeliest choices, int32, and their probabilities, float16: [written, `TOP`] each.
    choices: Any
    shares: Any
    #: States [rows of the text but the last, hidden] that leave the exit layer, and [written, hidden] that enter the head,
    #: float16; `None` where none was asked for.
    entering: Any
    final: Any


@lru_cache(maxsize=2)
def read_texts(path: Path) -> list[dict[str, Any]]:
    """Rows `{ids, prompt}` with at least two written tokens. Raises `ValueError` if there are fewer than 20."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [r for r in rows if len(r["ids"]) >= r["prompt"] + 2]
    if len(rows) < 20:
        raise ValueError(f"{path}: expected at least 20 texts with two written tokens or more, found {len(rows)}")
    return rows


@lru_cache(maxsize=2)
def lessons(target: Path, text: Path, window: int, exit_layer: int) -> list[Lesson]:
    """Lessons of all texts, cut to `window` tokens; those that are cut before their answer begins are left out.

    `exit_layer` 0: without states. Raises `ImportError` where the engine is not built.
    """
    import torch

    kept = text.with_suffix(".lessons.pt")
    facts = dict(target=f"{target.name} {target.stat().st_size}", text=zlib.crc32(text.read_bytes()), window=window)
    found = torch.load(kept, weights_only=True) if kept.exists() else {}
    if found.get("facts") != facts or exit_layer not in (0, found["exit_layer"]):
        found = dict(facts=facts, exit_layer=exit_layer, texts=_capture(target, read_texts(text), window, exit_layer))
        torch.save(found, kept)
    return [
        Lesson(
            t["ids"], slice(t["first"], len(t["ids"]) - 1), *(t[k] for k in ("choices", "shares", "entering", "final"))
        )
        for t in found["texts"]
    ]


def _capture(target: Path, rows: list[dict[str, Any]], window: int, exit_layer: int) -> list[dict[str, Any]]:
    """One forward of the engine a text."""
    import numpy as np
    import torch

    from omnidecode import LLM, Plan, SamplingParams, strategy

    taken: dict[tuple[int, ...], dict[str, Any]] = {}
    cut = [(r["ids"][:window], r["prompt"] - 1) for r in rows if r["prompt"] + 1 < window]
    first = {tuple(ids): at for ids, at in cut}
    options: dict[str, Any] = {}

    @strategy("capture-lesson")
    async def capture(seq: Any) -> None:
        ids = seq.tokens
        seen = await seq.forward(Plan(choice=False, top=TOP, stats=True, read="all", **options))
        at = first[tuple(ids)]
        places = [seen.place(place) for place in range(len(ids) - 1)]
        tops = [(place.top, place.stats[3]) for place in places[at:]]
        states = torch.from_numpy(np.stack([np.asarray(p.hidden) for p in places])).half() if exit_layer else None
        taken[tuple(ids)] = dict(
            ids=torch.tensor(ids),
            first=at,
            choices=torch.tensor([[token for token, _ in top] for top, _ in tops], dtype=torch.int32),
            shares=torch.tensor([[math.exp(logit - whole) for _, logit in top] for top, whole in tops]).half(),
            entering=None if states is None else states[:, 0].clone(),
            final=None if states is None else states[at:, 1].clone(),
        )
        seq.push(ids[-1])

    with LLM(target, threads=1) as llm:
        if exit_layer:
            options["hidden"] = [exit_layer, llm.card["layers"]]
        part = 32
        for at in range(0, len(cut), part):
            some = [ids for ids, _ in cut[at : at + part]]
            llm.generate(some, SamplingParams(max_tokens=1, ignore_eos=True), strategy="capture-lesson")
            print(f"\rlessons {at + len(some)}/{len(cut)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    return [taken[tuple(ids)] for ids, _ in cut]
