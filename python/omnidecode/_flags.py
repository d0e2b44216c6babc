"""What the verbs of the command line share: their flags, and how these become a model, a strategy, parameters, prompts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ._companion import companions
from ._strategy import Strategy, registry, resolve
from .errors import RequestError
from .llm import LLM
from .sampling import SamplingParams


def model_flags(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("model")
    group.add_argument("--model", help="folder, GGUF file or hub name; default: the embedded model")
    group.add_argument("--draft", help="a second model, for strategies that need one; short for --beside draft=PATH")
    group.add_argument(
        "--beside", action="append", default=[], metavar="ROLE=PATH", help="a further model by its role; repeatable"
    )
    group.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    group.add_argument(
        "--row-invariant",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="off: faster prompts on a GPU, every guarantee approximate",
    )
    group.add_argument(
        "--prefix-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="off: every request runs its whole prompt",
    )
    group.add_argument("--threads", type=int, help="worker threads")
    group.add_argument("--context", type=int, help="longest sequence, in tokens")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument("--offline", action="store_true", help="use the local hub cache only")


def strategy_flags(verb: argparse.ArgumentParser, *, name: bool = True) -> None:
    group = verb.add_argument_group("strategy", "`omnidecode strategies` lists names and parameters")
    if name:
        group.add_argument("--strategy", default="plain", help="how tokens are found (default plain)")
    group.add_argument(
        "--param", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the strategy; repeatable"
    )
    group.add_argument(
        "--companion", action="append", default=[], metavar="NAME[:KEY=VALUE,...]", help="rides along; repeatable"
    )
    group.add_argument("--judge", metavar="NAME", help="who scores the texts of a search: registered by a plugin")
    group.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a file that registers strategies; repeatable"
    )


#: Fields of SamplingParams that are no single number or word on a command line.
_REPEATED = {"stop": str, "stop_token_ids": int, "bad_words": str, "allowed_token_ids": int}
_NUMBERS = {"int": int, "float": float, "int | None": int}


def sampling_flags(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("sampling", "vLLM's names; see SamplingParams")
    for field in fields(SamplingParams):
        flag = "--" + field.name.replace("_", "-")
        if field.name in _REPEATED:
            group.add_argument(flag, action="append", type=_REPEATED[field.name], metavar="X", help="repeatable")
        elif field.name == "logit_bias":
            group.add_argument(flag, action="append", type=_bias, metavar="ID=BIAS", help="repeatable")
        elif field.type == "bool":
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None)
        elif field.init:
            group.add_argument(flag, type=_NUMBERS[str(field.type)], metavar="N")


def _bias(text: str) -> tuple[int, float]:
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected ID=BIAS, found {text!r}") from None


def read_sampling(options: argparse.Namespace, llm: LLM) -> SamplingParams:
    given: dict[str, Any] = {field.name: getattr(options, field.name, None) for field in fields(SamplingParams)}
    given = {name: value for name, value in given.items() if value is not None}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    given.setdefault("max_tokens", 256)
    config = llm.get_default_sampling_params()
    base = {f.name: getattr(config, f.name) for f in fields(SamplingParams) if f.init}
    return SamplingParams(**{**base, **given})


def open_model(options: argparse.Namespace) -> LLM:
    return LLM(
        options.model,
        draft=options.draft,
        beside=_beside(options.beside),
        device=options.device,
        row_invariant=options.row_invariant,
        prefix_cache=options.prefix_cache,
        threads=options.threads,
        context=options.context,
        revision=options.revision,
        local_files_only=options.offline,
    )


def _beside(pairs: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in pairs:
        role, equals, path = text.partition("=")
        if not equals or not path:
            raise RequestError(f"--beside: expected ROLE=PATH, found {text!r}")
        if role in found:
            raise RequestError(f"--beside: expected one model with the role {role}, found two")
        found[role] = path
    return found


def read_strategy(options: argparse.Namespace, name: str | None = None) -> Strategy:
    """The strategy with its ``--param`` values, typed by the registry."""
    load_plugins(options)
    name = name or options.strategy
    known = {entry["name"]: entry for entry in registry()}
    return resolve({"name": name, **_parameters("--param", name, known.get(name), options.param)})


def read_named(flag: str, text: str) -> Strategy:
    """A strategy written as ``NAME:KEY=VALUE,...``, its values typed by the registry."""
    name, _, rest = text.partition(":")
    known = {entry["name"]: entry for entry in registry()}
    return resolve({"name": name, **_parameters(flag, name, known.get(name), rest.split(",") if rest else [])})


def read_companions(options: argparse.Namespace) -> list[Any]:
    """The ``--companion`` values, typed by the registry."""
    known = {entry["name"]: entry for entry in companions()}
    found: list[Any] = []
    for text in options.companion:
        name, _, rest = text.partition(":")
        parameters = _parameters("--companion", name, known.get(name), rest.split(",") if rest else [])
        found.append({"name": name, **parameters})
    return found


def _parameters(flag: str, name: str, entry: dict[str, Any] | None, pairs: Sequence[str]) -> dict[str, Any]:
    kinds = {p["name"]: p["type"] for p in entry["parameters"]} if entry else {}
    parameters: dict[str, Any] = {}
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals:
            raise RequestError(f"{flag}: expected KEY=VALUE, found {text!r}")
        if entry and key not in kinds:
            raise RequestError(f"{flag}: {name} has no parameter {key!r}; it has {', '.join(kinds) or 'none'}")
        parameters[key] = _typed(f"{flag} {key}", value, kinds.get(key, "any"))
    return parameters


def _typed(flag: str, value: str, kind: str) -> Any:
    if kind.endswith("?") and value in ("", "none", "null"):
        return None
    if kind.rstrip("?") == "str":
        return value
    if kind.startswith("list[") and not value.startswith("["):
        value = "[" + (value if "str" not in kind else ",".join(json.dumps(item) for item in value.split(";"))) + "]"
        value = value.replace(";", ",")
    try:
        return json.loads(value.lower() if kind.startswith("bool") else value)
    except json.JSONDecodeError:
        if kind == "any":
            return value
        raise RequestError(f"{flag}: expected {kind}, found {value!r}") from None


def load_plugins(options: argparse.Namespace) -> None:
    for path in options.plugin:
        import runpy

        try:
            runpy.run_path(path)
        except OSError as error:
            raise RequestError(f"--plugin: expected a Python file, found {error}") from None


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: one a line, or JSON lines with a text, or an object with ``prompt``, ``question`` or ``turns``."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"expected a file of prompts, found {error}") from None
    prompts = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if path.suffix != ".jsonl" and path.suffix != ".json":
            prompts.append(line)
            continue
        try:
            entry = json.loads(line)
            found = (
                entry if isinstance(entry, str) else entry.get("prompt") or entry.get("question") or entry["turns"][0]
            )
            if not isinstance(found, str):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise RequestError(
                f"{path}:{number}: expected a JSON text or an object with 'prompt', 'question' or 'turns'"
            ) from None
        prompts.append(found)
    if not prompts:
        raise RequestError(f"{path}: expected at least one prompt, found none")
    return prompts


def read_answers(path: Path) -> list[str | None]:
    """What the prompts of :func:`read_prompts` should end in: the ``answer`` of each JSON line, ``None`` where there is none."""
    if path.suffix not in (".jsonl", ".json"):
        return []
    entries = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    found = [entry.get("answer") if isinstance(entry, dict) else None for entry in entries]
    return [str(answer) if answer is not None else None for answer in found]
