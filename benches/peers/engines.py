"""The engines that are measured, each with the same two verbs: seconds to a first token, seconds of each after it."""

from __future__ import annotations

import time
from pathlib import Path

GENERATED = 32  # tokens of a decoding turn


def prompt(tokens: int, salt: int) -> list[int]:
    """Ids that no vocabulary lacks; ``salt`` keeps turns from finding their prompt in a prefix cache."""
    return [100 + (i * 37 + salt * 101) % 900 for i in range(tokens)]


class Ours:
    """The installed wheel, through its public face."""

    def __init__(self, model: str, threads: int) -> None:
        import omnidecode

        self.sampling = omnidecode.SamplingParams
        self.llm = omnidecode.LLM(model, threads=threads, context=4096)

    def decode(self, context: int, salt: int) -> tuple[float, float]:
        """Seconds of a prompt of ``context`` ids up to its first token, and of each token after it."""
        params = self.sampling(temperature=0, max_tokens=GENERATED + 1, ignore_eos=True)
        start, seen, times = time.perf_counter(), 0, []
        for delta in self.llm.stream({"prompt_token_ids": prompt(context, salt)}, params, strategy="plain"):
            if delta.token_ids:
                times.append(time.perf_counter())
                seen += len(delta.token_ids)
        assert seen == GENERATED + 1, f"{seen} tokens"
        return times[0] - start, (times[-1] - times[0]) / GENERATED

    def together(self, requests: int, salt: int, tokens: int = 64, prefilled: bool = False) -> float:
        """Tokens a second of so many requests at once; ``prefilled``: their prompts were read before."""
        prompts = [{"prompt_token_ids": prompt(64, salt * 100 + i)} for i in range(requests)]
        if prefilled:
            self.llm.generate(prompts, self.sampling(temperature=0, max_tokens=1), strategy="plain")
        params = self.sampling(temperature=0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        self.llm.generate(prompts, params, strategy="plain")
        return requests * tokens / (time.perf_counter() - start)


class LlamaCpp:
    """llama-cpp-python; greedy choice by argmax over its logits is not counted (its own sampler would be slower)."""

    def __init__(self, model: str, threads: int) -> None:
        from llama_cpp import Llama

        self.llm = Llama(model, n_ctx=4096, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False)

    def decode(self, context: int, salt: int) -> tuple[float, float]:
        start = time.perf_counter()
        ids = prompt(context, salt)
        if list(self.llm.input_ids[: self.llm.n_tokens][:context]) == ids:
            self.llm.n_tokens = context  # what our prefix cache does
        else:
            self.llm.reset()
            self.llm.eval(ids)
        first = time.perf_counter()
        for i in range(GENERATED):
            self.llm.eval([200 + i])
        return first - start, (time.perf_counter() - first) / GENERATED


class Transformers:
    """transformers in one dtype, its own cache."""

    def __init__(self, model: str, threads: int, dtype: str = "bfloat16") -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self.torch = torch
        load = transformers.AutoModelForCausalLM.from_pretrained
        path = Path(model)
        where = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (model, {})
        self.model = load(where[0], dtype=getattr(torch, dtype), **where[1]).eval()

    def decode(self, context: int, salt: int) -> tuple[float, float]:
        torch = self.torch
        with torch.inference_mode():
            start = time.perf_counter()
            out = self.model(torch.tensor([prompt(context, salt)]), use_cache=True, logits_to_keep=1)
            first = time.perf_counter()
            for i in range(GENERATED):
                out = self.model(torch.tensor([[200 + i]]), past_key_values=out.past_key_values, use_cache=True)
            return first - start, (time.perf_counter() - first) / GENERATED


class MistralRs:
    """mistral.rs, by its own clock: its Python face takes text only, so the prompt is as many short words as ids are asked for."""

    def __init__(self, model: str, threads: int) -> None:
        from mistralrs import CompletionRequest, Runner, Which

        path = Path(model)
        self.request = CompletionRequest
        self.runner = Runner(which=Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name))

    def decode(self, context: int, salt: int) -> tuple[float, float]:
        words = ("one", "two", "red", "sun", "sea", "old", "new", "day")
        text = " ".join(words[(i * 5 + i // 7 + salt) % len(words)] for i in range(context))
        for _ in range(8):  # until it did not meet an end of text on its way
            request = self.request(prompt=text, model="default", max_tokens=GENERATED + 1, temperature=0.0)
            usage = self.runner.send_completion_request(request).usage
            if usage.completion_tokens == GENERATED + 1:
                return usage.total_prompt_time_sec, usage.total_completion_time_sec / GENERATED
            text = "And so on: " + text
        raise RuntimeError(f"mistral.rs ended a text of {context} words early, eight times")
