"""``python -m omnidecode.demo``: one chat prompt on the embedded default model, plainly and with Token Recycling."""

from __future__ import annotations

import argparse
import time

from .llm import LLM
from .outputs import RequestOutput
from .sampling import SamplingParams

QUESTION = (
    "Write a short story about a lighthouse keeper and a lost whale. "
    "Then list the five main events of the story, one per line."
)


def main() -> int:
    """Stream both answers, then compare them; returns 1 when they differ."""
    parser = argparse.ArgumentParser(prog="omnidecode.demo", description=__doc__)
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args()
    with LLM() as llm:
        messages = [{"role": "user", "content": options.question}]
        params = SamplingParams(temperature=0.0, max_tokens=options.max_tokens)
        llm.generate("warm", SamplingParams(temperature=0.0, max_tokens=2))
        card = llm.card
        print(f"{llm.path.name}: {card['parameters'] / 1e6:.0f}M parameters, {card['layers']} layers\n")
        runs: list[tuple[RequestOutput, float]] = []
        for strategy in ("plain", "token-recycling"):
            print(f"\x1b[1m{strategy}\x1b[0m\n" if _colour() else f"--- {strategy}\n")
            start = time.perf_counter()
            with llm.stream(messages, params, strategy=strategy) as stream:
                for delta in stream:
                    print(delta.text, end="", flush=True)
                runs.append((stream.result, time.perf_counter() - start))
            print("\n")
    print(f"{'strategy':<18}{'tokens/s':>9}{'tokens/forward':>16}  {'guarantee':<10}")
    for result, seconds in runs:
        tokens = len(result.outputs[0].token_ids)
        each = tokens / result.usage.forwards
        print(f"{result.strategy:<18}{tokens / seconds:>9.1f}{each:>16.2f}  {result.guarantee:<10}")
    plain, other = (result.outputs[0] for result, _ in runs)
    same = plain.token_ids == other.token_ids and plain.text == other.text
    print(f"both texts are identical: {'yes' if same else 'NO'}")
    return 0 if same else 1


def _colour() -> bool:
    import os
    import sys

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


if __name__ == "__main__":
    raise SystemExit(main())
