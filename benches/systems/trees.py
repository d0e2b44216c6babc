"""Block efficiency of draft trees at equal numbers of verified nodes, on a real pair (sheets 15 and 40).

    python benches/systems/trees.py MODEL DRAFT [--prompts FILE.jsonl] [--limit 12] [--tokens 64]

Prints, as Markdown, tokens for each verification (1 + accepted) for a chain, RSD-C, RSD-S and DySpec at 6, 10, 14, 21 and 30
nodes and several temperatures, the forwards of the draft model, and how often a drawn token of a given draft probability is
accepted: DySpec takes the two for the same. Counters only; nothing is timed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from omnidecode import LLM, Plan, SamplingParams, strategy

BUDGETS = (6, 10, 14, 21, 30)
SHAPES: dict[str, dict[int, dict[str, Any]]] = {
    "draft-model": {n: {"tokens": n, "adaptive": False} for n in BUDGETS},
    "rsd-c": {
        6: {"branching": [2, 2]},
        10: {"branching": [2, 2, 1]},
        14: {"branching": [2, 2, 2]},
        21: {"branching": [3, 2, 2]},
        30: {"branching": [2, 2, 2, 2]},
    },
    "rsd-s": {
        6: {"width": 2, "depth": 3},
        10: {"width": 2, "depth": 5},
        14: {"width": 2, "depth": 7},
        21: {"width": 3, "depth": 7},
        30: {"width": 5, "depth": 6},
    },
    "dyspec": {n: {"nodes": n, "mode": "heap"} for n in BUDGETS},
}
#: DySpec with the draft at the target's temperature, as the others have it, not at 0.6.
SHAPES["dyspec, draft as the target"] = {n: {**p, "draft_temperature": None} for n, p in SHAPES["dyspec"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("draft")
    parser.add_argument("--prompts", type=Path, default=Path(__file__).parents[2] / "tests/data/spec_bench_64.jsonl")
    parser.add_argument("--limit", type=int, default=12, help="prompts, evenly over the file")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--longest", type=int, default=1000, help="leave out prompts of more characters")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.6, 1.0])
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), choices=BUDGETS, help="verified nodes")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    lines = [json.loads(line)["prompt"] for line in options.prompts.read_text().splitlines()]
    lines = [line for line in lines if len(line) <= options.longest]
    prompts = lines[:: max(1, len(lines) // options.limit)][: options.limit]
    found: list[dict[str, Any]] = []
    texts: dict[float, list[list[int]]] = {}
    with LLM(options.model, draft=options.draft) as llm:
        talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
        for temperature in options.temperatures:
            sampling = SamplingParams(temperature=temperature, max_tokens=options.tokens, seed=7, ignore_eos=True)
            plain = llm.chat(talks, sampling)
            texts[temperature] = [list(o.prompt_token_ids) + o.outputs[0].token_ids for o in plain]
            starts = [len(o.prompt_token_ids) for o in plain]
            for name, shapes in SHAPES.items():
                if temperature == 0 and "," in name:
                    continue
                for budget in options.budgets:
                    parameters = shapes[budget]
                    strategy = {"name": name.split(",")[0], **parameters}
                    outputs = llm.chat(talks, sampling, strategy=strategy)
                    tokens = sum(len(o.outputs[0].token_ids) for o in outputs)
                    usage = [o.usage for o in outputs]
                    steps = tokens - sum(u.accepted for u in usage)
                    found.append(
                        {
                            "temperature": temperature,
                            "strategy": name,
                            "nodes": budget,
                            "verified": sum(u.drafted for u in usage) / steps,
                            "efficiency": tokens / steps,
                            "draft_forwards": sum(u.forwards - u.target_forwards for u in usage) / steps,
                        }
                    )
                    print(json.dumps(found[-1]), flush=True)
    for what, title in (
        ("efficiency", "tokens for each verification"),
        ("draft_forwards", "forwards of the draft model for each verification"),
    ):
        print(table(found, options.budgets, what, title))
    bins = accepted(options.model, options.draft, texts, starts)
    print(bins_table(bins))
    if options.json:
        options.json.write_text(json.dumps({"trees": found, "acceptance": bins}, indent=1))


def table(found: list[dict[str, Any]], budgets: list[int], what: str, title: str) -> str:
    lines = [f"\n{title}\n", "| temperature | strategy | " + " | ".join(map(str, budgets)) + " |"]
    lines.append("|---" * (len(budgets) + 2) + "|")
    for temperature, name in dict.fromkeys((f["temperature"], f["strategy"]) for f in found):
        row = [f[what] for f in found if (f["temperature"], f["strategy"]) == (temperature, name)]
        lines.append(f"| {temperature:g} | {name} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    return "\n".join(lines)


def accepted(model: str, draft: str, texts: dict[float, list[list[int]]], starts: list[int]) -> list[dict[str, Any]]:
    """By temperature and by the draft's probability of a token drawn from the draft: how often the target accepts it as a first
    child, the draft at the target's temperature. At 0 that is whether the target chooses it, drawn at temperature 1."""
    import numpy as np

    edges = [0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0001]
    sums = {t: np.zeros((len(edges) - 1, 2)) for t in texts}
    read: list[Any] = []

    @strategy(name="logits-of-the-draft", needs=["draft"])
    async def logits(seq: Any) -> None:
        """The draft's logits at every place; a draft of its own has no tokenizer to be opened with."""
        small = seq.sibling("draft")
        small.follow(seq)
        seen = await small.forward(Plan(logits=True, choice=False, read="all"))
        read.append([np.array(np.from_dlpack(seen.place(at).logits)).ravel() for at in range(len(seq.tokens))])

    with LLM(model, draft=draft) as llm:
        for temperature, ids in texts.items():
            for text, start in zip(ids, starts, strict=True):
                target = np.from_dlpack(llm.logits(text))[start - 1 : -1]
                llm.generate([text], SamplingParams(max_tokens=1), strategy="logits-of-the-draft")
                drafter = np.stack(read.pop())[start - 1 : -1]
                warm = temperature or 1.0
                q = soft(np, drafter / warm)
                p = soft(np, target / temperature) if temperature else chosen(np, target)
                chance = np.minimum(1.0, p / np.maximum(q, 1e-30)) if temperature else p
                which = np.digitize(q, edges) - 1
                for at in range(len(edges) - 1):
                    inside = which == at
                    sums[temperature][at] += q[inside].sum(), (q * chance)[inside].sum()
    return [
        {
            "temperature": t,
            "from": edges[at],
            "to": min(edges[at + 1], 1.0),
            "share": s[at, 0] / s[:, 0].sum(),
            "accepted": s[at, 1] / s[at, 0],
        }
        for t, s in sums.items()
        for at in range(len(edges) - 1)
        if s[at, 0] > 0
    ]


def soft(np: Any, logits: Any) -> Any:
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def chosen(np: Any, logits: Any) -> Any:
    law = np.zeros(logits.shape)
    law[np.arange(len(logits)), logits.argmax(1)] = 1.0
    return law


def bins_table(bins: list[dict[str, Any]]) -> str:
    lines = ["\naccepted, by the draft's probability of the drawn token (share of draws)\n"]
    ranges = sorted({(b["from"], b["to"]) for b in bins})
    lines.append("| temperature | " + " | ".join(f"{low:g} to {high:g}" for low, high in ranges) + " |")
    lines.append("|---" * (len(ranges) + 1) + "|")
    for temperature in dict.fromkeys(b["temperature"] for b in bins):
        row = {(b["from"], b["to"]): b for b in bins if b["temperature"] == temperature}
        cells = [f"{row[r]['accepted']:.2f} ({row[r]['share']:.0%})" if r in row else "" for r in ranges]
        lines.append(f"| {temperature:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
