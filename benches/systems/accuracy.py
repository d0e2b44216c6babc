"""What strategies that are not exact cost in right answers: plain decoding beside `fs-gen`, `superposed` and the companion `lazyllm`.

    python benches/systems/accuracy.py MODEL --draft DRAFT [--summaries en.jsonl] [--spec-bench question.jsonl] [--mmlu dev.jsonl val.jsonl]

Sets, greedy, each with what guessing would get:

- ``topic``: of which of six topics a paragraph is, twelve examples before it (lines with `title`, `text`, `topic`);
- ``word``: the last word of a paragraph that has been in it before (the same lines; guessing: one of the words that could be meant);
- ``passage``: a question about a passage before it, right where the answer holds a reference (Spec-Bench's `rag`);
- ``mmlu``: five examples of the subject, the letter of one of four choices.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnidecode import LLM, SamplingParams

TOPICS = {
    "Arts": "Arts",
    "Biology and health sciences": "Biology",
    "Geography": "Geography",
    "Mathematics": "Mathematics",
    "People": "People",
    "Technology": "Technology",
}


@dataclass
class Question:
    """A prompt (chat: as a user's message), whether an answer to it is right, and the chance of a guess."""

    prompt: str
    right: Callable[[str], bool]
    guess: float
    chat: bool = False


def begins(word: str) -> Callable[[str], bool]:
    return lambda answer: re.match(rf"\W*{re.escape(word)}\b", answer, re.IGNORECASE) is not None


def holds(references: list[str]) -> Callable[[str], bool]:
    return lambda answer: any(r.lower() in answer.lower() for r in references)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def topics(rows: list[dict[str, Any]], count: int) -> Iterator[Question]:
    draw = random.Random(0)
    kinds = {k: [r for r in rows if r["topic"] == k and 150 < len(r["text"]) < 400] for k in TOPICS}
    shots = [r for k in TOPICS for r in draw.sample(kinds[k], 2)]
    draw.shuffle(shots)
    head = "".join(f"Text: {r['text']}\nTopic: {TOPICS[r['topic']]}\n\n" for r in shots)
    for i in range(count):
        kind = list(TOPICS)[i % len(TOPICS)]
        row = draw.choice([r for r in kinds[kind] if r not in shots])
        yield Question(f"{head}Text: {row['text']}\nTopic:", begins(TOPICS[kind]), 1 / len(TOPICS))


def words(rows: list[dict[str, Any]], count: int) -> Iterator[Question]:
    found = 0
    for row in random.Random(1).sample(rows, len(rows)):
        text = row["text"].strip()
        last = re.search(r"\s([A-Za-z]{4,})\.$", text)
        if found == count or not last or not 400 < len(text) < 1300:
            continue
        before = text[: last.start()]
        known = {w.lower() for w in re.findall(r"[A-Za-z]{4,}", before)}
        if last[1].lower() in known:
            found += 1
            yield Question(before, begins(last[1]), 1 / len(known))


def passages(rows: list[dict[str, Any]], count: int) -> Iterator[Question]:
    for row in [r for r in rows if r["category"] == "rag"][:count]:
        references = [r.strip(" *") for r in row["reference"][0]]
        yield Question(row["turns"][0], holds(references), 0.0, chat=True)


def choices(dev: list[dict[str, Any]], val: list[dict[str, Any]], count: int) -> Iterator[Question]:
    def show(row: dict[str, Any], answer: str) -> str:
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"])]
        return "\n".join([row["question"], *lines, f"Answer:{answer}"])

    for i in range(min(count, len(val))):
        row = val[i * len(val) // count]
        shots = [show(r, f" {r['answer']}\n") for r in dev if r["subject"] == row["subject"]]
        yield Question("\n".join([*shots, show(row, "")]), begins(row["answer"]), 0.25)


def settings() -> Iterator[tuple[str, str | dict[str, Any], list[Any]]]:
    """A name, a strategy, companions."""
    yield "plain", "plain", []
    yield "fs-gen, the draft alone", {"name": "fs-gen", "method": "oracle", "router": "none"}, []
    for threshold in (0.3, 0.5):
        how = {"name": "fs-gen", "method": "oracle", "router": "threshold", "threshold": threshold}
        yield f"fs-gen (method oracle, router threshold, threshold {threshold})", how, []
    yield "fs-gen (method contrastive)", {"name": "fs-gen"}, []
    yield "superposed", {"name": "superposed"}, []
    yield "superposed (learn_prompt False)", {"name": "superposed", "learn_prompt": False}, []
    for drop in (30.0, 50.0, 70.0):
        yield f"lazyllm (drop {drop:g})", "plain", [{"name": "lazyllm", "drop": [drop]}]
    late = {"name": "lazyllm", "after": [0.1, 0.3, 0.6], "drop": [50.0]}
    yield "lazyllm (after 0.1, 0.3, 0.6, drop 50)", "plain", [late]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", required=True)
    parser.add_argument("--summaries", type=Path)
    parser.add_argument("--spec-bench", type=Path)
    parser.add_argument("--mmlu", type=Path, nargs=2, metavar=("DEV", "VAL"))
    parser.add_argument("--count", type=int, default=200, help="questions of a set, where it has so many (default 200)")
    parser.add_argument("--rows", default="", help="only the rows whose name begins so")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sets: dict[str, tuple[list[Question], int]] = {}
    if options.summaries:
        rows = read(options.summaries)
        sets["topic"] = (list(topics(rows, options.count)), 3)
        sets["word"] = (list(words(rows, options.count)), 6)
    if options.spec_bench:
        sets["passage"] = (list(passages(read(options.spec_bench), options.count)), 48)
    if options.mmlu:
        sets["mmlu"] = (list(choices(*map(read, options.mmlu), options.count)), 1)
    facts: dict[str, dict[str, Any]] = {}
    with LLM(options.model, draft=options.draft) as llm:
        for name, (questions, tokens) in sets.items():
            law = SamplingParams(temperature=0.0, max_tokens=tokens)
            guess = sum(q.guess for q in questions) / len(questions)
            print(f"\n{name}: {len(questions)} questions, a guess is right in {guess:.0%}\n")
            print(
                "| strategy | right | as plain, of texts | right in one of its drafts |\n|---|---|---|---|", flush=True
            )
            facts[name] = {"questions": len(questions), "guess": guess, "rows": {}}
            reference: list[str] = []
            for row, strategy, companions in settings():
                if row != "plain" and not row.startswith(options.rows):
                    continue
                run = llm.chat if questions[0].chat else llm.generate
                asked = [[{"role": "user", "content": q.prompt}] if q.chat else q.prompt for q in questions]
                found = run(asked, law, strategy=strategy, companions=companions)  # type: ignore[arg-type]
                texts = [f.outputs[0].text for f in found]
                reference = reference or texts
                right = sum(q.right(t) for q, t in zip(questions, texts))
                among = sum(any(q.right(o.text) for o in f.outputs) for q, f in zip(questions, found))
                same = sum(a == b for a, b in zip(texts, reference))
                facts[name]["rows"][row] = {"right": right, "as_plain": same, "among": among}
                several = f"{among}" if among != right else ""
                print(f"| {row} | {right} ({right / len(questions):.0%}) | {same} | {several} |", flush=True)
                if options.json:
                    options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
