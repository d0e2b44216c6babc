"""A draft model of two thin layers with the target's vocabulary, for strategies with two models.

Nearly all its weights are the embedding, so it starts from the target's own, projected on its leading directions. It learns
the text that the target wrote by ordinary next-token loss (sheet 00-drafter-training, `ce_hard`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from omnidecode.train.drafter import Drafter


@dataclass(frozen=True)
class Draft(Drafter):
    def build(self) -> Any:
        import torch

        from omnidecode.train.model import Llama, Shape

        target = self.model_of_target()
        shape = target.shape
        model = Llama(Shape(vocabulary=shape.vocabulary, context=shape.context, rope_theta=10000.0, **self.shape))
        table = target.model.embed_tokens.weight
        centred = table - table.mean(0)
        _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
        leading = centred @ directions[:, -model.shape.hidden :]
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(leading * (0.05 / leading.std()))
        return model

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        import torch
        import torch.nn.functional as F

        total, count = torch.zeros(()), 0
        for row in self.draw(seed, step):
            ids = torch.tensor(row["ids"][: self.window])
            first = row["prompt"] - 1  # row j of the logits speaks of token j + 1
            logits = model(ids[None, :-1], torch.arange(first, len(ids) - 1))
            total = total + F.cross_entropy(logits, ids[first + 1 :], reduction="sum")
            count += len(logits)
        return total / count, count

    def judged(self, model: Any, row: dict[str, Any]) -> tuple[Any, Any]:
        import torch

        ids = torch.tensor([row["ids"][: self.window]])
        rows = torch.arange(row["prompt"] - 1, ids.shape[1] - 1)
        return self.model_of_target()(ids, rows), model(ids, rows)

    def export(self, model: Any, folder: Any, facts: dict[str, Any]) -> None:
        from omnidecode.train import checkpoint

        checkpoint.export(folder, model, facts | dict(target=str(self.target and self.target.name)), tokenizer=False)
        # special tokens are the target's: a draft never decides where a text ends
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            del config[name]
        path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


RECIPES = {
    "draft": Draft(
        "draft", shape=dict(hidden=48, intermediate=128, layers=2, heads=3), steps=600, batch=4, learning_rate=3e-3
    ),
}
