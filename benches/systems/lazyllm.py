"""The companion LazyLLM against plain decoding alone on long prompts: time to first token, rows times layers, agreement (sheet 43).

    python benches/systems/lazyllm.py MODEL [--tokens 2048] [--rounds 5]

The prompt is a text written here. Alternating, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from omnidecode import LLM, SamplingParams


def text(llm: LLM, tokens: int) -> list[int]:
    """A prompt of so many tokens: short reports, then a question about one of them."""
    names = ("Ada", "Bela", "Cleo", "Dora", "Emil", "Fritz", "Gita", "Hugo", "Ines", "Jona")
    lines = [
        f"Report {i}: {names[i % 10]} walked {3 + i * 7 % 40} miles to the {('mill', 'port', 'farm', 'well')[i % 4]} and paid {i * 13 % 90 + 5} coins for {('salt', 'rope', 'oil')[i % 3]}."
        for i in range(400)
    ]
    question = llm.tokenize("\nQuestion: what did Cleo pay for in report 12?\nAnswer:", add_special_tokens=False)
    body = llm.tokenize("\n".join(lines))
    return body[: tokens - len(question)] + question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answer", type=int, default=24, help="tokens of the answers that are counted and compared")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "lazyllm, drop 30": {"name": "lazyllm"},
        "lazyllm, drop 50": {"name": "lazyllm", "drop": [50.0]},
        "lazyllm, drop 70": {"name": "lazyllm", "drop": [70.0]},
        "lazyllm, drop 50 from layer 3 on": {"name": "lazyllm", "after": [0.1, 0.3, 0.6], "drop": [50.0]},
    }
    facts: dict[str, dict[str, Any]] = {name: {"first": [], "answer": []} for name in settings}
    one = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    long = SamplingParams(temperature=0.0, max_tokens=options.answer, ignore_eos=True)
    with LLM(options.model) as llm:
        body = text(llm, options.tokens + options.rounds + 1)
        reference: list[int] = []
        for turn in range(options.rounds + 1):
            # Another first token each turn: nothing is found in the prefix cache.
            prompt = body[turn + 1 : turn + 2] + body[turn + 2 - options.tokens % 2 :]
            prompt = prompt[: options.tokens]
            for at, (name, companion) in enumerate(settings.items()):
                with_it = [companion] if companion else []
                prompt[0] = 1000 + turn * len(settings) + at
                start = time.perf_counter()
                first = llm.generate([prompt], one, companions=with_it)[0]
                if turn:
                    facts[name]["first"].append(time.perf_counter() - start)
                else:
                    prompt[0] = 999
                    answer = llm.generate([prompt], long, companions=with_it)[0]
                    reference = reference or answer.outputs[0].token_ids
                    same = sum(a == b for a, b in zip(answer.outputs[0].token_ids, reference, strict=True))
                    facts[name]["row_layers"] = first.usage.row_layers
                    facts[name]["row_layers_answer"] = answer.usage.row_layers
                    facts[name]["same"] = same / len(reference)
    plain = facts["plain"]
    print(f"{options.tokens} tokens of prompt, median of {options.rounds}\n")
    print(
        "| plain with | rows x layers of the prompt | time to first token, s | plain / it | rows x layers with the answer | tokens as plain |"
    )
    print("|---|---|---|---|---|---|")
    for name, f in facts.items():
        f["ratio"] = statistics.median(p / t for p, t in zip(plain["first"], f["first"], strict=True))
        print(
            f"| {name} | {f['row_layers']} ({f['row_layers'] / plain['row_layers']:.0%}) | {statistics.median(f['first']):.3f} | {f['ratio']:.2f} "
            f"| {f['row_layers_answer']} ({f['row_layers_answer'] / plain['row_layers_answer']:.0%}) | {f['same']:.0%} |"
        )
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
