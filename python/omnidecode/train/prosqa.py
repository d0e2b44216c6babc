"""What a thing is: small taxonomies after ProsQA, by written steps or by continuous thoughts.

`EB,CD,BA:E?A|D` says that every E is a B, and so on, and asks whether an E is an A or a D; the written answer is the path, an
edge a step, and the node asked for: `EB,BA,#A`. Coconut (arXiv:2412.06769, sheet 34) replaces the first s steps by s thoughts:
behind `<|start-latent|>` the state after the final norm is fed back as the next input, s times, then comes
`<|end-latent|>` and the rest of the answer.

A node is one thing only, where ProsQA's graphs branch: the way is found by looking up edges, without a search. (Questions from
above, which of two nodes below a node, were tried: a model of this size guesses the end rather than learn to look up.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omnidecode.train import alphabet
from omnidecode.train.recipe import Recipe, Row, Task, held_out, questions

LETTERS = "ABCDEFGHIJKLMNOP"
HOPS = 3
#: Questions about one graph in a text of `prosqa-cot`.
DRILL = 4


class Graphs(Task):
    prompt, canvas, block = 0, 24, 24

    def sample(self, random: random.Random) -> tuple[str, str]:
        """Two trees of 9 to 12 nodes in all; the question climbs 2 or 3 edges."""
        while True:
            if found := ask(random, forest(random), least=2):
                return found

    def judge(self, question: str, answer: str) -> bool:
        edges, query = question.split(":")
        found = answer.rpartition("#")[2]
        return found in query[2:].split("|") and found in climb(edges.split(","), query[0])


def forest(random: random.Random, most: int = 12) -> list[str]:
    """Edges of two trees, node and parent, mixed; up to `most` nodes, none deeper than `HOPS`."""
    nodes = random.sample(LETTERS, random.randint(most * 3 // 4, most))
    depth = {nodes[0]: 0, nodes[1]: 0}
    edges = []
    for node in nodes[2:]:
        parent = random.choice([n for n, d in depth.items() if d < HOPS])
        depth[node] = depth[parent] + 1
        edges.append(node + parent)
    random.shuffle(edges)
    return edges


def ask(random: random.Random, edges: list[str], least: int) -> tuple[str, str] | None:
    """A question whose end lies at least `least` edges above its start, against a node that is no ancestor; and its answer."""
    paths = [path for e in edges if len(path := climb(edges, e[0])) > least]
    if not paths:
        return None
    path = random.choice(paths)
    right = path[least:]
    wrong = sorted({e[1] for e in edges} - set(path))
    if not right or not wrong:
        return None
    target = random.choice(right)
    pair = [target, random.choice(wrong)]
    random.shuffle(pair)
    steps = "".join(f"{a}{b}," for a, b in zip(path, path[1 : path.index(target) + 1]))
    return f"{','.join(edges)}:{path[0]}?{'|'.join(pair)}", f"{steps}#{target}"


def climb(edges: list[str], start: str) -> list[str]:
    """`start` and all that it is, nearest first."""
    parent = {e[0]: e[1] for e in edges}
    path = [start]
    while path[-1] in parent:
        path.append(parent[path[-1]])
    return path


def answer_behind(answer: str, steps: int) -> str:
    """What is still written when the first `steps` steps are thought."""
    path, _, end = answer.partition("#")
    return path[3 * steps :] + "#" + end


@dataclass(frozen=True)
class Written(Recipe):
    """Chain of thought. Half of the texts only repeat the edges of a graph in another order, which teaches to look one up by
    its node; the others ask several questions about one graph. Graphs grow for a third of the steps.
    """

    def build(self) -> Any:
        model = super().build()
        model.model.embed_tokens.weight.data.mul_(
            8
        )  # what a token is must not drown in what the first layer adds to it
        give_lookup(model)
        return model

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        import torch
        import torch.nn.functional as F

        source = random.Random(f"{seed}:{step}")
        most = 8 + min(4, 12 * step // steps)
        texts, answers = zip(*((repeat, drill)[i % 2](source, forest(source, most)) for i in range(self.batch)))
        width = max(map(len, texts))
        ids = torch.tensor([t + [alphabet.PAD] * (width - len(t)) for t in texts])
        wanted = torch.tensor([a + [False] * (width - len(a)) for a in answers])[:, 1:]
        rows = F.pad(wanted, (0, 1)).flatten().nonzero()[:, 0]
        return F.cross_entropy(model(ids, rows), ids[:, 1:][wanted]), ids.numel()


def give_lookup(model: Any) -> None:
    """Sets one head of each of the first two layers so that a token attends to what followed its earlier like.

    Looking up an edge takes two heads: one writes to every place what stands before it, another finds the place by that.
    Neither pays without the other, and a small model finds both at once only in many more texts than can be afforded here
    (of 50 thousand lookups it learned nothing). What to do with the place that was found is left to training.

    First head: all embeddings get one common component; out of it come a constant query and a constant key, whose phases let
    rotary positions agree best one place apart. Second head: query and key are the same projection of a token, the key's taken
    of what the first head wrote, in rotary dimensions that hardly turn.
    """
    import torch

    shape, (first, second) = model.shape, (layer.self_attn for layer in model.model.layers[:2])
    width = shape.hidden // shape.heads
    pairs = width // 2
    turn = shape.rope_theta ** (-torch.arange(pairs) / pairs)
    fast, slow = torch.arange(4), torch.arange(pairs * 3 // 8, pairs)
    share, logits = 4.0, 8.0  # the common component after the norm; logits of each pair at one place apart
    size = (logits * width**0.5) ** 0.5 / share
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        rest = table[:, 1:].square().sum(1).mean()
        table[:, 0] = (share**2 * rest / (shape.hidden - share**2)).sqrt()
        for product, phase in ((first.q_proj, turn[fast]), (first.k_proj, torch.zeros(len(fast)))):
            product.weight[:width] = 0
            product.weight[fast, 0], product.weight[fast + pairs, 0] = size * phase.cos(), -size * phase.sin()
        read = torch.nn.init.orthogonal_(torch.empty(width, shape.hidden))
        read[:, 0] = 0
        write = torch.nn.init.orthogonal_(torch.empty(shape.hidden, width))
        first.v_proj.weight[:width], first.o_proj.weight[:, :width] = read, write * table[:, 1:].std()
        calm = torch.cat((slow, slow + pairs))
        for product, kept in ((second.q_proj, read), (second.k_proj, write.T)):
            product.weight[:width] = 0
            product.weight[calm] = 2 * kept[: len(calm)]


def drill(random: random.Random, edges: list[str]) -> tuple[list[int], list[bool]]:
    """Tokens of a text with `DRILL` questions, none of them held out, and which of the tokens are answers."""
    text = [alphabet.BOS, *alphabet.encode(",".join(edges) + ":")]
    answers = [False] * len(text)
    for _ in range(DRILL):
        found = ask(random, edges, least=2)
        if found and not held_out(found[0]):
            query, answer = alphabet.encode(found[0].partition(":")[2]), [*alphabet.encode(found[1]), alphabet.EOS]
            text += query + answer
            answers += [False] * len(query) + [True] * len(answer)
    return text, answers


def repeat(random: random.Random, edges: list[str]) -> tuple[list[int], list[bool]]:
    """Tokens of a text that repeats its edges, mixed, and which of them follow from the node before: the parents."""
    again = random.sample(edges, len(edges))
    text = [alphabet.BOS, *alphabet.encode(",".join(edges) + ":" + ",".join(again))]
    known = len(text) - 3 * len(again) + 1
    return text, [i >= known and (i - known) % 3 == 1 for i in range(len(text))]


@dataclass(frozen=True)
class Coconut(Recipe):
    """Stage s thinks s steps. Training goes through the stages `first` to `HOPS`; the last, where nothing is written, is
    longest. `batch` counts graphs, each with `DRILL` questions that share its rows: an answer has few tokens to learn from.
    """

    first: int = 0

    def stage(self, step: int, steps: int) -> int:
        return min(HOPS, self.first + int(step / steps * (HOPS + 3)))

    def loss(self, model: Any, seed: int, step: int, steps: int) -> tuple[Any, int]:
        thoughts, source = self.stage(step, steps), random.Random(f"{seed}:{step}")
        graphs: list[list[int]] = []
        queries: list[list[int]] = []
        texts: list[list[int]] = []
        while len(graphs) < self.batch:
            edges = forest(source)
            asked = [found for _ in range(DRILL) if (found := ask(source, edges, least=2)) and not held_out(found[0])]
            if len(asked) == DRILL:
                graphs.append([alphabet.BOS, *alphabet.encode(",".join(edges) + ":")])
                queries += [[*alphabet.encode(q.partition(":")[2]), alphabet.START_LATENT] for q, _ in asked]
                texts += [[*alphabet.encode(answer_behind(a, thoughts)), alphabet.EOS] for _, a in asked]
        return latent_loss(model, graphs, thoughts, texts, queries)

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


def _begin(
    model: Any, prompts: list[list[int]], thoughts: int, queries: list[list[int]] | None = None
) -> Callable[[Any], Any]:
    """Prompts, left-padded so that the thoughts of all stand at one index, then `thoughts` passes of one row.

    `queries`, all equally long, follow the prompts, as many behind each, and share its keys and values: the batch is theirs
    then. Returns the function that runs further tokens [batch, n] and gives their states.
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

    if queries:
        each = len(queries) // len(prompts)
        past = [(k.repeat_interleave(each, 0), v.repeat_interleave(each, 0)) for k, v in past]
        place, real = place.repeat_interleave(each, 0), real.repeat_interleave(each, 0)
        states = run(model.embed(torch.tensor(queries)))
    for _ in range(thoughts):
        states = run(states[:, -1:])  # the state after the final norm, as it is: no projection (sheet 34, contract 5)
    return run


def latent_loss(
    model: Any,
    prompts: list[list[int]],
    thoughts: int,
    texts: list[list[int]],
    queries: list[list[int]] | None = None,
) -> tuple[Any, int]:
    """Mean cross-entropy of `texts` behind `<|end-latent|>`, gradients through every thought; and the rows that were run.
    `queries` as in `_begin`; one text for each, else for each prompt."""
    import torch
    import torch.nn.functional as F

    run = _begin(model, prompts, thoughts, queries)
    width = max(map(len, texts))
    truth = torch.tensor([t + [alphabet.PAD] * (width - len(t)) for t in texts])
    given = torch.cat((torch.full((len(texts), 1), alphabet.END_LATENT), truth[:, :-1]), 1)
    logits = model.head(run(model.embed(given)))
    query = len(queries[0]) if queries else 0
    rows = len(prompts) * max(map(len, prompts)) + len(texts) * (query + thoughts + width)
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
SHAPE = dict(attention="causal", layers=4, hidden=64, intermediate=192, heads=2)
RECIPES = {
    "prosqa-cot": Written("prosqa-cot", TASK, SHAPE, steps=1000, batch=32, learning_rate=4e-3),
    "prosqa-coconut": Coconut("prosqa-coconut", TASK, SHAPE, steps=2800, batch=64, learning_rate=2e-3),
    # Behind it: the last stage alone.
    "prosqa-coconut-last": Coconut(
        "prosqa-coconut-last", TASK, SHAPE, steps=1600, batch=64, learning_rate=1e-3, first=HOPS
    ),
}
