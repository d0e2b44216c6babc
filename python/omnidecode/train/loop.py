"""The training loop: AdamW, warm-up and cosine, progress, checkpoints to resume from, export."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from omnidecode.train import checkpoint
from omnidecode.train.recipe import Recipe

WARM_UP, FLOOR, CLIP = 100, 0.02, 1.0
SAVE_EVERY = 200


def learning_rate(peak: float, step: int, steps: int) -> float:
    """Linear warm-up over `WARM_UP` steps (at most a tenth of all), then a cosine to `FLOOR` of the peak."""
    warm = min(1.0, (step + 1) / max(1, min(WARM_UP, steps // 10)))
    return peak * warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms) do not. Frozen parameters are left out."""
    free = [p for p in model.parameters() if p.requires_grad]
    groups = [
        dict(params=[p for p in free if p.dim() > 1], weight_decay=0.01),
        dict(params=[p for p in free if p.dim() < 2], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train(
    recipe: Recipe,
    folder: Path,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    start: Path | None = None,
    until: int | None = None,
    progress: bool = True,
) -> list[float]:
    """Trains and writes the checkpoint to `folder`; returns the loss of each step of this run.

    `steps`: of the whole schedule (the recipe's own if none). `until`: stop there, leaving what `resume` needs. `start`: a
    checkpoint to take the weights from. Raises `ValueError` when a run to resume was begun with another seed or length.
    """
    steps = steps or recipe.steps
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = dict(
        recipe=recipe.name, steps=steps, seed=seed, batch=recipe.batch, learning_rate=recipe.learning_rate
    )
    torch.manual_seed(seed)
    model = recipe.build()
    adam = optimizer(model)
    done = tokens = 0
    seconds = 0.0
    begun_from = start.name if start else None
    state_file = folder / "state.pt"
    if resume:
        if not state_file.exists():
            raise ValueError(f"nothing to resume: {state_file} is missing (a finished run leaves none)")
        state = torch.load(state_file, weights_only=True)
        found = {k: state["facts"].get(k) for k in facts}
        if found != facts:
            raise ValueError(f"the run to resume was begun as {found}, this one asks for {facts}")
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["optimizer"])
        done, tokens, seconds = (state["facts"][k] for k in ("done", "tokens", "seconds"))
        begun_from = state["facts"].get("start")
    elif start is not None:
        model.load_state_dict(recipe.load(start).state_dict())

    def state_facts() -> dict[str, Any]:
        spent = round(seconds + time.monotonic() - begin, 1)
        return facts | dict(done=done, tokens=tokens, seconds=spent, start=begun_from)

    begin, losses = time.monotonic(), []
    bar = Progress(done, steps) if progress else None
    end = min(steps, until or steps)
    model.train()
    while done < end:
        rate = learning_rate(recipe.learning_rate, done, steps)
        for group in adam.param_groups:
            group["lr"] = rate
        loss, ran = recipe.loss(model, seed, done, steps)
        adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], CLIP)
        adam.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"the loss became {losses[-1]} at step {done}: lower the learning rate or change the seed"
            )
        done, tokens = done + 1, tokens + ran
        if bar:
            bar.show(done, losses[-1], ran, rate)
        if done % SAVE_EVERY == 0 and done < steps:
            checkpoint.save_state(state_file, model, adam, state_facts())
    if done < steps:
        checkpoint.save_state(state_file, model, adam, state_facts())
        return losses
    tail = losses[-50:]
    final = state_facts() | dict(
        parameters=sum(p.numel() for p in model.parameters()),
        loss=round(sum(tail) / max(1, len(tail)), 4),
        torch=torch.__version__,
    )
    recipe.export(model, folder, final)
    state_file.unlink(missing_ok=True)
    return losses


class Progress:
    """A bar on a terminal, a line each half minute elsewhere; on stderr."""

    def __init__(self, done: int, steps: int):
        self.first, self.steps, self.begin = done, steps, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.told, self.tokens = self.begin, 0
        self.mean: float | None = None

    def show(self, done: int, loss: float, tokens: int, rate: float) -> None:
        now = time.monotonic()
        self.tokens += tokens
        self.mean = loss if self.mean is None else 0.97 * self.mean + 0.03 * loss
        if now - self.told < (0.2 if self.terminal else 30) and done < self.steps:
            return
        self.told = now
        passed = now - self.begin
        left = passed / (done - self.first) * (self.steps - done)
        full = 24 * done // self.steps
        text = (
            f"[{'#' * full}{'.' * (24 - full)}] {done}/{self.steps}  loss {self.mean:.4f}  rate {rate:.1e}  "
            f"{self.tokens / passed:.0f} tok/s  {passed / 60:.1f} min, {left / 60:.1f} left"
        )
        last = done == self.steps
        print(
            f"\r{text}\033[K" if self.terminal else text,
            end="" if self.terminal and not last else "\n",
            file=sys.stderr,
            flush=True,
        )
