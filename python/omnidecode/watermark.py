"""The MajorMark detector (arXiv:2508.03829, sheet 41): reads a message out of a text, with the key alone.

    text = llm.generate(prompt, companions=[{"name": "majormark", "message": "10110100", "key": 42}])[0].outputs[0]
    found = watermark.detect(text.token_ids, bits=8, key=42, model=llm)
    print(found.message, found.p_value, found.detected)

Neither weights nor the prompt are needed, only the tokenizer of the model that wrote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import _core
from .errors import RequestError
from .hub import locate
from .llm import LLM

__all__ = ["KEY", "Detection", "detect"]

#: The companion's default key.
KEY = 15485863


@dataclass(slots=True)
class Detection:
    """What a text says.

    ``message``: the likeliest one, as 0s and 1s; there always is one. ``p_value``: the chance that a text without this
    watermark has shards as uneven (Pearson's test on the most uneven hypothesis of each block, corrected for their
    number, blocks joined by Fisher's method); ``z``: the same as a standard normal deviate. ``detected``: whether
    ``p_value`` is below ``false_positives``. ``std_test``: the sheet's own test for one block, in counts and therefore
    dependent on the length. ``counted``: tokens that were counted. ``scores``: of each block the score of the best
    hypothesis and of the next.
    """

    message: str
    p_value: float
    z: float
    detected: bool
    false_positives: float
    std_test: bool | None
    counted: int
    scores: list[tuple[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def detect(
    text: str | Sequence[int],
    *,
    bits: int,
    key: int = KEY,
    blocks: int = 1,
    dedup: bool = True,
    false_positives: float = 1e-3,
    model: str | os.PathLike[str] | LLM | None = None,
) -> Detection:
    """Read a text (or, more surely, its token ids) for a message of ``bits`` bits in ``blocks`` blocks.

    ``key`` and ``blocks`` as the companion ``majormark`` was given them; ``model``: the one that wrote, as in
    :class:`LLM`. ``dedup``: count each token with its context once; without it the p-value is too small for texts that
    repeat themselves. ``false_positives``: the share of other texts that may be taken for marked ones.

    Raises :class:`RequestError` for a code that cannot be, :class:`ModelError` where there is no such model.
    """
    if not 0 < false_positives < 1:
        raise RequestError(f"false_positives: expected a number between 0 and 1, found {false_positives!r}")
    for name, value in (("bits", bits), ("key", key), ("blocks", blocks)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
            raise RequestError(f"{name}: expected a whole number from 0, found {value!r}")
    path = model.path if isinstance(model, LLM) else locate(model)
    detector = _core.Detector(path, key, bits, blocks)
    ids = detector.tokens(text) if isinstance(text, str) else [int(id) for id in text]
    message, p_value, z, std_test, counted, scores = detector.detect(ids, dedup)
    return Detection(message, p_value, z, p_value < false_positives, false_positives, std_test, counted, scores)
