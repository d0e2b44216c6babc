"""The character tokenizer that all small models share: printable ASCII and a few special tokens.

Token ids: the specials in the order of `SPECIALS`, then newline, then the characters 32 to 126. No merges, so a text of n
characters is n tokens (one more with `<bos>`), and tokens are easy to read in a picture of a canvas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIALS = ["<pad>", "<mask>", "<eos>", "<bos>", "<unk>", "<|start-latent|>", "<|end-latent|>", "<|latent|>"]
PAD, MASK, EOS, BOS, UNK, START_LATENT, END_LATENT, LATENT = range(len(SPECIALS))
CHARACTERS = ["\n", *map(chr, range(32, 127))]
VOCABULARY = SPECIALS + CHARACTERS
_IDS = {token: i for i, token in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """Token ids of `text`, one a character, without `<bos>`. Raises `ValueError` for a character outside the alphabet."""
    try:
        return [_IDS[c] for c in text]
    except KeyError as bad:
        raise ValueError(f"character {bad.args[0]!r} is not in the alphabet (printable ASCII and newline)") from None


def decode(ids: list[int]) -> str:
    """Text up to the first `<eos>`; other specials are written out, so that a stray mask shows."""
    text = []
    for i in ids:
        if i == EOS:
            break
        text.append(VOCABULARY[i])
    return "".join(text)


def write_tokenizer(folder: Path) -> None:
    """Writes `tokenizer.json` (byte-pair model without merges: every character is its own token) and its config."""
    special = [
        dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, t in enumerate(SPECIALS)
    ]
    tokenizer: dict[str, Any] = dict(
        version="1.0",
        truncation=None,
        padding=None,
        added_tokens=special,
        normalizer=None,
        pre_tokenizer=None,
        post_processor=dict(
            type="TemplateProcessing",
            single=[{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            pair=[{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            special_tokens={"<bos>": {"id": "<bos>", "ids": [BOS], "tokens": ["<bos>"]}},
        ),
        decoder=dict(type="Fuse"),
        model=dict(
            type="BPE",
            dropout=None,
            unk_token="<unk>",
            continuing_subword_prefix=None,
            end_of_word_suffix=None,
            fuse_unk=False,
            byte_fallback=False,
            ignore_merges=False,
            vocab=_IDS,
            merges=[],
        ),
    )
    config = dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        clean_up_tokenization_spaces=False,
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
