"""Which of two nodes can be reached: graphs of 6 to 9 nodes after ProsQA, by written steps or by continuous thoughts.

`AB,CD,BE:A?E|D` asks whether E or D can be reached from A; the written answer is the path, a node a step, and the node asked
for: `BE#E`. Coconut (arXiv:2412.06769, sheet 34) replaces the first s steps by s thoughts: behind `<|start-latent|>` the state
after the final norm is fed back as the next input, s times, then comes `<|end-latent|>` and the rest of the answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omnidecode.train import alphabet
from omnidecode.train.recipe import Recipe, Row, Task, questions

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
HOPS = 3


class Graphs(Task):
    prompt, canvas, block = 0, 24, 24

    def sample(self, random: random.Random) -> tuple[str, str]:
        """A graph grown from two roots; the question starts at the first, whose nodes are the right ones. 2 or 3 hops."""
        while True:
            nodes = random.sample(LETTERS, random.randint(6, 9))
            root, parents = nodes[0], {}
            for at, node in enumerate(nodes[2:], 2):
                parents[node] = random.sample(nodes[:at], random.choice((1, 1, 2)))
            edges = [p + node for node, ps in parents.items() for p in ps]
            paths = reach(edges, root)
            leaves = [n for n in nodes if not any(n == e[0] for e in edges)]
            right = [n for n in leaves if n in paths and 2 <= len(paths[n]) <= HOPS]
            wrong = [n for n in leaves if n not in paths and n in parents]
            if right and wrong:
                target = random.choice(right)
                pair = [target, random.choice(wrong)]
                random.shuffle(pair)
                random.shuffle(edges)
                path = "".join(edge[1] for edge in paths[target])
                return f"{','.join(edges)}:{root}?{'|'.join(pair)}", f"{path}#{target}"

    def judge(self, question: str, answer: str) -> bool:
        edges, query = question.split(":")
        found = answer.partition("#")[2]
        return found in query[2:].split("|") and found in reach(edges.split(","), query[0])


def reach(edges: list[str], root: str) -> dict[str, list[str]]:
    """Every node that `root` leads to, with the edges of a shortest path (first in order of `edges` where several)."""
    paths: dict[str, list[str]] = {root: []}
    front = [root]
    while front:
        ahead = []
        for node in front:
            for edge in edges:
                if edge[0] == node and edge[1] not in paths:
                    paths[edge[1]] = paths[node] + [edge]
                    ahead.append(edge[1])
        front = ahead
    return paths


def answer_behind(answer: str, thoughts: int) -> str:
    """What is still written when the first `thoughts` steps are thought."""
    path, _, end = answer.partition("#")
    return path[thoughts:] + "#" + end


@dataclass(frozen=True)
class Coconut(Recipe):
    """Stage s thinks s steps. Training goes through the stages 0 to `HOPS`; the last, where nothing is written, is longest."""

    def stage(self, step: int, steps: int) -> int:
        return min(HOPS, int(step / steps * (HOPS + 3)))

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        thoughts = self.stage(step, steps)
        items = questions(self.task, f"{seed}:{step}", self.batch, held=False)
        texts = [alphabet.encode(answer_behind(a, thoughts)) + [alphabet.EOS] for _, a in items]
        return latent_loss(model, [prompt_ids(q) for q, _ in items], thoughts, texts)

    def evaluate(self, model: Any, count: int, items: list[tuple[str, str]] | None = None) -> list[Row]:
        from omnidecode.train.decode import share

        items = items or questions(self.task, "held-out", count, held=True)
        table = []
        for thoughts in range(HOPS + 1):
            hits, tokens = [], 0
            for at in range(0, len(items), 64):
                part = items[at : at + 64]
                for (q, _), out in zip(
                    part, think(model, [prompt_ids(q) for q, _ in part], thoughts, self.task.canvas)
                ):
                    text = alphabet.decode(out)
                    hits.append(self.task.judge(q, text))
                    tokens += len(text) + 1
            table.append(dict(thoughts=thoughts, accuracy=share(hits), written=round(tokens / len(items), 2)))
        return table


def prompt_ids(question: str) -> list[int]:
    return [alphabet.BOS, *alphabet.encode(question), alphabet.START_LATENT]


def _begin(model: Any, prompts: list[list[int]], thoughts: int) -> Callable[[Any], Any]:
    """Prompts, left-padded so that the thoughts of all stand at one index, then `thoughts` passes of one row.

    Returns the function that runs further tokens [batch, n] and gives their states.
    """
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([[alphabet.PAD] * (width - len(p)) + p for p in prompts])
    real = ids != alphabet.PAD
    place = real.cumsum(1) - 1
    sees = torch.ones(width, width, dtype=torch.bool).tril() & real[:, None, :] | torch.eye(width, dtype=torch.bool)
    states, past = model.states(model.embed(ids), place.clamp(min=0), sees[:, None])
    place = place[:, -1:]

    def run(x: Any) -> Any:
        nonlocal past, place, real
        n = x.shape[1]
        earlier = real.shape[1]
        real = torch.cat((real, torch.ones(len(real), n, dtype=torch.bool)), 1)
        mask = real[:, None, None, :] & torch.ones(n, earlier + n, dtype=torch.bool).tril(earlier)
        states, past = model.states(x, place + torch.arange(1, n + 1), mask, past)
        place = place + n
        return states

    for _ in range(thoughts):
        states = run(states[:, -1:])  # the state after the final norm, as it is: no projection (sheet 34, contract 5)
    return run


def latent_loss(model: Any, prompts: list[list[int]], thoughts: int, texts: list[list[int]]) -> tuple[Any, int]:
    """Mean cross-entropy of `texts` behind `<|end-latent|>`, gradients through every thought; and the rows that were run."""
    import torch
    import torch.nn.functional as F

    run = _begin(model, prompts, thoughts)
    width = max(map(len, texts))
    truth = torch.tensor([t + [alphabet.PAD] * (width - len(t)) for t in texts])
    given = torch.cat((torch.full((len(texts), 1), alphabet.END_LATENT), truth[:, :-1]), 1)
    logits = model.head(run(model.embed(given)))
    rows = len(prompts) * (max(map(len, prompts)) + thoughts + width)
    return F.cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=alphabet.PAD), rows


def think(model: Any, prompts: list[list[int]], thoughts: int, limit: int) -> list[list[int]]:
    """Greedy answers behind `thoughts` continuous thoughts."""
    import torch

    with torch.no_grad():
        run = _begin(model, prompts, thoughts)
        token = torch.full((len(prompts), 1), alphabet.END_LATENT)
        out = []
        for _ in range(limit):
            token = model.head(run(model.embed(token)))[:, -1:].argmax(-1)
            out.append(token)
            if all(alphabet.EOS in row for row in torch.cat(out, 1).tolist()):
                break
    return torch.cat(out, 1).tolist()


TASK = Graphs()
SHAPE = dict(attention="causal")
RECIPES = {
    "prosqa-cot": Recipe("prosqa-cot", TASK, SHAPE, steps=800, batch=64, learning_rate=3e-3),
    "prosqa-coconut": Coconut("prosqa-coconut", TASK, SHAPE, steps=800, batch=64, learning_rate=1e-3),
}
