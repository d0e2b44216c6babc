"""Make beam-<model>.json: texts and scores of plain beam search, by transformers in float32, on the tiny checkpoints here.

Run with any environment that has torch and transformers: `python tests/golden/beam.py [model ...]`. Tokens that end a text are
chosen among the ones that the models like, so that beams end early, late and never.
"""

import json
import sys
from itertools import product
from pathlib import Path

import torch
import transformers

HERE = Path(__file__).parent
PROMPTS = [[5, 17, 33, 90, 4], [201, 7, 7, 150, 31, 88, 12, 64, 3]]
PENALTIES = [-1.0, 0.0, 0.7, 1.0, 2.0]
STOPPING = [True, False, "never"]
LONGEST = 14


def liked(model, prompt, count):
    """Tokens in the middle of a greedy text: ends that are met."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=LONGEST, do_sample=False, eos_token_id=None)
    return sorted({int(t) for t in out[0, len(prompt) + 4 :]})[:count]


def cases(name):
    model = transformers.AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.float32).eval()
    for prompt, width, ends in product(PROMPTS, [2, 3, 5], [0, 1, 3]):
        ids = liked(model, prompt, ends)
        for i, (penalty, stopping) in enumerate(product(PENALTIES, STOPPING)):
            if ids == [] and i % 4:
                continue  # without ends only the penalty of the last length matters
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=LONGEST,
                do_sample=False,
                length_penalty=penalty,
                early_stopping=stopping,
                eos_token_id=ids or None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
            )
            texts = []
            for row in out.sequences[:, len(prompt) :].tolist():
                end = next((j + 1 for j, t in enumerate(row) if t in ids), len(row))
                texts.append(row[:end])
            yield {
                "prompt": prompt,
                "width": width,
                "length_penalty": penalty,
                "early_stopping": str(stopping).lower(),
                "stop_token_ids": ids,
                "max_tokens": LONGEST,
                "texts": texts,
                "scores": [round(float(s), 6) for s in out.sequences_scores],
            }


def main():
    torch.set_num_threads(1)
    for name in sys.argv[1:] or ["llama", "phi3", "qwen3"]:
        found = list(cases(name))
        lines = ",\n".join(json.dumps(case) for case in found)
        head = json.dumps({"transformers": transformers.__version__, "dtype": "float32", "model": name})[1:-1]
        (HERE / f"beam-{name}.json").write_text(f'{{{head}, "cases": [\n{lines}\n]}}\n')
        print(name, len(found), "cases")


if __name__ == "__main__":
    main()
