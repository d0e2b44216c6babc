"""A draft model of a few thin layers with the target's vocabulary, for strategies with two models.

Nearly all its weights are the embedding, so it starts from the target's own, projected on its leading directions, and the
export is a GGUF file in Q8_0: at the size of half precision the model is nearly twice as wide. It learns the target's law
on text that the target wrote (sheet 00-drafter-training, `ce_soft`). A draft needs no tokenizer: the engine hands it ids.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidecode.train.drafter import Drafter
from omnidecode.train.lessons import Lesson


@dataclass(frozen=True)
class Draft(Drafter):
    def build(self) -> Any:
        import torch

        from omnidecode.train.model import Llama, Shape

        target = self.model_of_target()
        shape = target.shape
        if self.shape["hidden"] > shape.hidden:
            raise ValueError(f"hidden: expected at most the target's {shape.hidden}, found {self.shape['hidden']}")
        model = Llama(Shape(vocabulary=shape.vocabulary, context=shape.context, rope_theta=10000.0, **self.shape))
        table = target.model.embed_tokens.weight
        centred = table - table.mean(0)
        _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
        leading = centred @ directions[:, -model.shape.hidden :]
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(leading * (0.05 / leading.std()))
        return model

    def states(self, model: Any, lesson: Lesson, rows: Any) -> Any:
        import torch

        length = int(rows.max()) + 1
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        return model.states(model.embed(lesson.ids[None, :length]), torch.arange(length), mask)[0][0, rows]

    def table(self, model: Any) -> Any:
        return model.model.embed_tokens.weight

    def export(self, model: Any, folder: Path, facts: dict[str, Any]) -> None:
        from omnidecode.train import gguf

        folder.mkdir(parents=True, exist_ok=True)
        gguf.write_llama(folder / "model.gguf", model)
        facts = facts | dict(target=str(self.target and self.target.name))
        (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def load(self, folder: Path) -> Any:
        """As exported: the weights are rounded to 8 bits."""
        from omnidecode.train import target

        return target.load(folder / "model.gguf").requires_grad_(True)


RECIPES = {
    "draft": Draft(
        "draft", shape=dict(hidden=128, intermediate=384, layers=3, heads=4), steps=1500, batch=8, learning_rate=3e-3
    ),
}
