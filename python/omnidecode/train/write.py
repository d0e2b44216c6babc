"""`python -m omnidecode.train.write`: text written by the target itself, by this engine, to train drafters on.

A drafter is asked to guess what the target writes, so it learns from that rather than from people's text (sheet
00-drafter-training, stage 2). Temperatures 0, 0.3, 0.7 and 1 take turns; top-p 0.95; a seed per prompt, so that a run that was
interrupted goes on (`--resume`) to the same file.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
#: Prompts that are answered together, and then written.
PART = 128


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m omnidecode.train.write", description=__doc__)
    parser.add_argument("--target", help="model folder, GGUF file or hub name (default: the embedded model)")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="one prompt a line: plain, or JSON with `question` or `prompt`"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL")
    parser.add_argument("--count", type=int, default=400, help="prompts to answer (default 400)")
    parser.add_argument("--max-tokens", type=int, default=192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on behind the texts that the file holds")
    given = parser.parse_args(arguments)
    from omnidecode import LLM, SamplingParams

    lines = [line for line in given.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = [question(line) for line in lines[: given.count]]
    laws = [
        SamplingParams(
            temperature=TEMPERATURES[i % 4], top_p=0.95, seed=given.seed * 1_000_003 + i, max_tokens=given.max_tokens
        )
        for i in range(len(prompts))
    ]
    done = len(given.out.read_text(encoding="utf-8").splitlines()) if given.resume and given.out.exists() else 0
    tokens = 0
    with LLM(given.target) as llm, open(given.out, "a" if given.resume else "w", encoding="utf-8") as file:
        for at in range(done, len(prompts), PART):
            part = slice(at, at + PART)
            answers = llm.chat([[{"role": "user", "content": p}] for p in prompts[part]], laws[part])
            for answer, law in zip(answers, laws[part]):
                ids = [*answer.prompt_token_ids, *answer.outputs[0].token_ids]
                row = dict(ids=ids, prompt=len(answer.prompt_token_ids), temperature=law.temperature, seed=law.seed)
                file.write(json.dumps(row) + "\n")
                tokens += len(answer.outputs[0].token_ids)
            file.flush()
            print(f"\rtexts {min(at + PART, len(prompts))}/{len(prompts)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(f"{len(prompts) - done} texts, {tokens} written tokens -> {given.out}")
    return 0


def question(line: str) -> str:
    """The prompt of a line."""
    if not line.startswith("{"):
        return line
    row = json.loads(line)
    for key in ("question", "prompt", "text"):
        if key in row:
            return str(row[key])
    raise ValueError(f"expected a field `question`, `prompt` or `text`, found {', '.join(row)}")


if __name__ == "__main__":
    sys.exit(main())
