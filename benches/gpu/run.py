"""What only a GPU can prove, in one run and one results file: ``benches/gpu/run --help``.

First every kernel against its twin, then small checkpoints of every architecture against logits of transformers, then the
laws on the given model, then times. ``--device cpu`` goes through the same steps on the processor, and ``--device emulated``
(in a build with the feature ``emulator``) on kernels that the processor runs, so that the script itself can be tried without
a GPU; the results then say so. Without a device it says what is missing and ends with status 3. A failed check, golden or
law ends it with status 1, after the results are written.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import shutil
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import omnidecode
from omnidecode import LLM, Plan, SamplingParams, _core
from omnidecode._strategy import registry

ROOT = Path(__file__).resolve().parents[2]
#: Shapes of real models, filled with noise: hidden, layers, heads, kv heads, head size, intermediate, vocabulary.
SHAPES = {
    "tiny": (128, 2, 4, 2, 32, 256, 1000),
    "0.6B": (1024, 28, 16, 8, 128, 3072, 151936),
    "1B": (2048, 16, 32, 8, 64, 8192, 128256),
    "8B": (4096, 32, 32, 8, 128, 14336, 128256),
}
GOALS = {"8B of bandwidth": 0.88, "1B of bandwidth": 0.78, "32 rows over 1": 1.10, "token-recycling over plain": 2.0}


def prompt(tokens: int, salt: int) -> dict[str, list[int]]:
    """Ids that no vocabulary lacks; ``salt`` keeps turns from finding their prompt in a prefix cache."""
    return {"prompt_token_ids": [100 + (i * 37 + salt * 101) % 700 for i in range(tokens)]}


def noise_model(folder: Path, name: str) -> Path:
    """A Llama of this shape in bf16, random weights, written once."""
    path = folder / name
    if (path / "config.json").exists():
        return path
    hidden, layers, heads, kv_heads, dim, intermediate, vocab = SHAPES[name]
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        at = f"model.layers.{i}."
        shapes |= {
            at + "input_layernorm.weight": (hidden,),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (heads * dim, hidden),
            at + "self_attn.k_proj.weight": (kv_heads * dim, hidden),
            at + "self_attn.v_proj.weight": (kv_heads * dim, hidden),
            at + "self_attn.o_proj.weight": (hidden, heads * dim),
            at + "mlp.gate_proj.weight": (intermediate, hidden),
            at + "mlp.up_proj.weight": (intermediate, hidden),
            at + "mlp.down_proj.weight": (hidden, intermediate),
        }
    header, at = {}, 0
    for key, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write(noise(shape))
    (path / "tokenizer.json").write_bytes((ROOT / "models/chains-ar/tokenizer.json").read_bytes())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": dim,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def noise(shape: tuple[int, ...]) -> bytes:
    """bf16: ones for a norm, else normal numbers that keep activations near 1."""
    count = math.prod(shape)
    if len(shape) == 1:
        return struct.pack("<H", 0x3F80) * count
    import numpy

    rng = numpy.random.default_rng(count)
    block = rng.standard_normal(min(count, 1 << 24), dtype=numpy.float32) / math.sqrt(shape[1])
    bits = (block.view(numpy.uint32) >> 16).astype(numpy.uint16)
    return numpy.resize(bits, count).tobytes()


def tensors(path: Path) -> dict[str, Any]:
    """Numbers of a safetensors file in f32 or i32, as ``(shape, tuple)``."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    found = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and about["dtype"] in ("F32", "I32"):
            start, end = (8 + size + offset for offset in about["data_offsets"])
            kind = "f" if about["dtype"] == "F32" else "i"
            found[name] = (about["shape"], struct.unpack(f"<{(end - start) // 4}{kind}", data[start:end]))
    return found


def goldens(device: str) -> dict[str, float | str]:
    """The worst distance of a logit from what transformers gave, of every small checkpoint: the
    first ids as a prompt. More than 1e-4 of the logit, or of 1, is wrong.
    """
    found: dict[str, float | str] = {}
    for config in sorted((ROOT / "tests/golden").glob("*/config.json")):
        expected = tensors(config.parent / "golden.safetensors")
        if not {"input_ids", "logits"} <= expected.keys() or not (config.parent / "model.safetensors").exists():
            continue
        ids, flat = list(expected["input_ids"][1])[:24], expected["logits"][1]
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "model.safetensors"):
                shutil.copy(config.parent / name, folder)
            shutil.copy(ROOT / "models/chains-ar/tokenizer.json", folder)
            try:
                with LLM(folder, device=device) as llm:
                    logits = [x for row in llm.logits(ids).tolist() for x in row]
            except omnidecode.OmnidecodeError as error:
                found[config.parent.name] = str(error)
                continue
        far = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(logits, flat))
        found[config.parent.name] = far
    return found


def spent(llm: LLM) -> float:
    return float(llm.stats()["network_seconds"])


def decode_seconds(
    llm: LLM, context: int, strategy: str = "plain", tokens: int = 64, turns: int = 5, **sampling: float
) -> dict[str, float]:
    """Median seconds a token and tokens a forward of one request, after a turn that is thrown away."""
    params = SamplingParams(**{"temperature": 0, **sampling}, max_tokens=tokens, ignore_eos=True)
    each, per_forward = [], 1.0
    for turn in range(turns + 1):
        stamps = []
        for delta in llm.stream(prompt(context, turn), params, strategy=strategy):
            stamps += [time.perf_counter()] * len(delta.token_ids)
        each.append((stamps[-1] - stamps[0]) / max(1, len(stamps) - 1))
    (output,) = llm.generate([prompt(context, turns + 1)], params, strategy=strategy)
    per_forward = tokens / max(1, output.usage.target_forwards)
    return {"seconds": statistics.median(each[1:]), "tokens a forward": per_forward}


def row_seconds(llm: LLM, rows: list[int], context: int) -> dict[int, float]:
    """Median network seconds of a forward of so many rows behind a context."""
    found: dict[int, float] = {}

    @omnidecode.strategy("rows-timed")
    async def rows_timed(seq: Any) -> None:
        seq.push((await seq.forward()).root.choice)
        await seq.forward()
        for count in rows:
            times = []
            for _ in range(12):
                before = spent(llm)
                await seq.forward(Plan.chain([200 + i for i in range(count - 1)], kv="discard"))
                times.append(spent(llm) - before)
            found[count] = statistics.median(times[2:])
        while not seq.finished:
            seq.push((await seq.forward()).root.choice)

    llm.generate(
        [prompt(context, 9)], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True), strategy=rows_timed()
    )
    return found


def prompt_seconds(llm: LLM, context: int) -> float:
    """Median seconds to the first token of a prompt that is in no cache."""
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    times = []
    for turn in range(6):
        start = time.perf_counter()
        llm.generate([prompt(context, 50 + turn)], params, strategy="plain")
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def bandwidth() -> float | None:
    """Bytes a second of a copy on the device, read and written; ``None`` without torch and a GPU."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    del source, target
    torch.cuda.empty_cache()
    return 2 * (1 << 30) / statistics.median(times[5:])


def transformers_seconds(folder: Path, context: int, device: str, tokens: int = 64) -> float | str:
    """Seconds a token of transformers on the same weights, or why there is no figure."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        return f"not measured: {error}"
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.bfloat16).to(device)
    ids = torch.tensor([prompt(context, 1)["prompt_token_ids"]], device=device)
    each = []
    for _ in range(4):
        times = []
        for count in (1, 1 + tokens):
            start = time.perf_counter()
            model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
            times.append(time.perf_counter() - start)
        each.append((times[1] - times[0]) / tokens)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()
    return statistics.median(each[1:])


def laws(llm: LLM, reference: LLM | None, prompts: int) -> dict[str, Any]:
    """Exact strategies give the ids of plain decoding; so do mixed batches; the CPU agrees as far as it leads clearly."""
    lines = (ROOT / "tests/data/spec_bench_64.jsonl").read_text("utf-8").splitlines()[:prompts]
    chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in lines]
    exact = [s["name"] for s in registry() if s["guarantee"] == "exact" and not s["needs"] and s["name"] != "plain"]
    found: dict[str, Any] = {"prompts": prompts, "strategies": exact, "differ": [], "refused": {}}
    ids = lambda outputs: [output.outputs[0].token_ids for output in outputs]  # noqa: E731
    for temperature in (0.0, 1.0):
        params = [SamplingParams(temperature=temperature, seed=i, max_tokens=48) for i in range(prompts)]
        plain = ids(llm.chat(chats, params, strategy="plain"))
        for name in exact:
            try:
                if ids(llm.chat(chats, params, strategy=name)) != plain:
                    found["differ"].append([name, temperature])
            except omnidecode.OmnidecodeError as error:
                found["refused"][name] = str(error)
        ready = ["plain", *(name for name in exact if name not in found["refused"])]
        mixed = [ready[i % len(ready)] for i in range(prompts)]
        if ids(llm.chat(chats, params, strategy=mixed)) != plain:
            found["differ"].append(["mixed", temperature])
        alone = [ids(llm.chat(chat, one, strategy="plain"))[0] for chat, one in zip(chats, params, strict=True)]
        if alone != plain:
            found["differ"].append(["alone", temperature])
        if reference is not None and temperature == 0.0:
            theirs = ids(reference.chat(chats, params, strategy="plain"))
            same = [
                next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), min(len(x), len(y)))
                for x, y in zip(plain, theirs)
            ]
            found["tokens as on the processor"] = {"median": statistics.median(same), "least": min(same)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="SmolLM2 as GGUF")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", default="0.6B 1B 8B", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--contexts", default="64 2048")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--scratch", default=os.path.join(tempfile.gettempdir(), "omnidecode-noise"))
    parser.add_argument("--output", default=None)
    options = parser.parse_args()
    if options.shapes and importlib.util.find_spec("numpy") is None:
        parser.error("expected numpy, which makes random weights, found none: install it, or give --shapes ''")
    facts = json.loads(_core.cuda())
    on_gpu, emulated = options.device.startswith("cuda"), options.device == "emulated"
    if on_gpu and facts["missing"]:
        print(f"no device: {facts['missing']}", file=sys.stderr)
        return 3
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": facts["devices"][0]
        if on_gpu
        else f"the processor ({platform.machine()}), {options.device}: nothing here speaks of a GPU's speed",
        "cuda": facts,
        "machine": json.loads(_core.machine()) | {"system": platform.platform()},
        "version": omnidecode.__version__,
        "goals": GOALS,
    }
    failed = []
    if on_gpu or emulated:
        results["checks"] = json.loads(_core.check_cuda(options.device))
        failed += [check["name"] for check in results["checks"] if check["error"]]
        print("kernels:", f"{len(failed)} of {len(results['checks'])} checks failed", *failed)
    results["goldens"] = goldens(options.device)
    wrong = [name for name, far in results["goldens"].items() if isinstance(far, str) or not far <= 1e-4]
    failed += wrong
    print("goldens:", f"{len(wrong)} of {len(results['goldens'])} are off", *wrong)
    peak = results["bandwidth"] = bandwidth() if on_gpu else None
    contexts = [int(context) for context in options.contexts.split()]
    with LLM(options.model, device=options.device) as llm:
        reference = LLM(options.model) if options.device != "cpu" else None
        results["laws"] = laws(llm, reference, options.prompts)
        failed += results["laws"]["differ"]
        print("laws:", results["laws"]["differ"] or "hold", results["laws"]["refused"] or "")
        model = results["model"] = {"path": Path(options.model).name, "bytes": llm.card["bytes"]}
        model["decode"] = {context: decode_seconds(llm, context) for context in contexts}
        model["token-recycling"] = {context: decode_seconds(llm, context, "token-recycling") for context in contexts}
        model["rows"] = row_seconds(llm, [1, 2, 4, 8, 16, 32, 64], contexts[-1])
        cuts = {"none": {}, "top-k": {"top_k": 50}, "top-p": {"top_p": 0.9}}
        model["sampled"] = {cut: decode_seconds(llm, contexts[0], temperature=1, **law) for cut, law in cuts.items()}
        model["prompt"] = prompt_seconds(llm, contexts[-1])
        model["host rows"] = llm.stats()["host_rows"]
        if reference is not None:
            reference.close()
    if on_gpu or emulated:
        # The named mode: products of many rows by the library, quantized weights unpacked for it.
        with LLM(options.model, device=options.device, row_invariant=False) as llm:
            model["prompt, rows not invariant"] = prompt_seconds(llm, contexts[-1])
            model["library products"] = llm.stats()["library_products"]
    results["noise"] = {}
    for name in options.shapes.split():
        folder = noise_model(Path(options.scratch), name)
        shape: dict[str, Any] = {}
        with LLM(str(folder), device=options.device) as llm:
            shape["bytes"] = llm.card["bytes"]
            shape["decode"] = {context: decode_seconds(llm, context, turns=3) for context in contexts}
            shape["rows"] = row_seconds(llm, [1, 2, 4, 8, 16, 32, 64], contexts[-1])
            shape["prompt"] = prompt_seconds(llm, contexts[-1])
        if on_gpu:
            # The named mode: products of many rows by the library, if the machine has it.
            with LLM(str(folder), device=options.device, row_invariant=False) as llm:
                shape["prompt, rows not invariant"] = prompt_seconds(llm, contexts[-1])
        if peak:
            best = min(times["seconds"] for times in shape["decode"].values())
            shape["of bandwidth"] = shape["bytes"] / best / peak
        shape["transformers"] = transformers_seconds(folder, contexts[0], options.device)
        results["noise"][name] = shape
        print(name, json.dumps(shape))
    results["failed"] = failed
    output = options.output or str(ROOT / f"benches/results/gpu-{results['date'][:10]}.json")
    Path(output).write_text(json.dumps(results, indent=2) + "\n")
    print(f"results: {output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
