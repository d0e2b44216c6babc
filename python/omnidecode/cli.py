"""The command ``omnidecode``: generate, chat, bench, report, strategies, doctor.

Exit codes: 0 done, 1 it failed, 2 the command line was wrong, 130 interrupted. Answers go to standard output, everything
else to standard error; ``--json`` prints one JSON value on standard output and nothing else there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from . import __version__
from ._companion import companions
from ._strategy import Strategy, registry, resolve
from .bench import bench
from .doctor import doctor
from .errors import ModelError, OmnidecodeError, RequestError
from .llm import LLM
from .outputs import RequestOutput
from .progress import Progress
from .report import load, render
from .sampling import SamplingParams

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except RequestError as error:  # what was asked for is impossible: the command line is wrong
        print(f"omnidecode: {error}", file=sys.stderr)
        return 2
    except OmnidecodeError as error:
        print(f"omnidecode: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("omnidecode: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="omnidecode", description="Decode a language model with any strategy.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"omnidecode {__version__}")
    verbs = parser.add_subparsers(metavar="command", required=True)

    generate = _verb(verbs, "generate", "complete prompts", _generate)
    generate.add_argument("prompts", nargs="*", help="texts to complete; none, or -, reads standard input")
    generate.add_argument("--file", type=Path, help="read prompts from a file: one a line, or JSON lines")
    generate.add_argument("--chat", action="store_true", help="put each prompt through the chat template")
    _model_flags(generate)
    _strategy_flags(generate)
    _sampling_flags(generate)

    chat = _verb(verbs, "chat", "talk; standard input is one message a line", _chat)
    chat.add_argument("--system", help="a system message")
    _model_flags(chat)
    _strategy_flags(chat)
    _sampling_flags(chat)

    timing = _verb(verbs, "bench", "measure strategies against plain decoding, alternating", _bench)
    timing.add_argument("--prompts", type=Path, help="a file of prompts: one a line, or JSON lines; default: built in")
    timing.add_argument("--strategies", help="names, separated by commas; default: all that need only the model")
    timing.add_argument("--rounds", type=int, default=3, help="how often each strategy runs (default 3)")
    timing.add_argument("--limit", type=int, help="use the first prompts only")
    timing.add_argument("--completion", action="store_true", help="use the prompts as they are, without chat template")
    _model_flags(timing)
    _strategy_flags(timing, name=False)
    _sampling_flags(timing)

    drawing = _verb(verbs, "report", "draw a run as one HTML page", _report)
    drawing.add_argument(
        "run_json", metavar="RUN.json", help="what another command printed with --json, or - for standard input"
    )
    drawing.add_argument("-o", "--output", help="the page, or - for standard output (default: RUN.html)")

    listing = _verb(verbs, "strategies", "list the strategies and their parameters", _strategies)
    listing.add_argument("names", nargs="*", help="only these")
    listing.add_argument("--companions", action="store_true", help="list the companions instead")

    examine = _verb(verbs, "doctor", "say what this machine and installation offer", _doctor)
    _model_flags(examine)
    return parser


def _verb(verbs: Any, name: str, help: str, run: Any) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)
    return verb


def _model_flags(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("model")
    group.add_argument("--model", help="folder, GGUF file or hub name; default: the embedded model")
    group.add_argument("--draft", help="a second model, for strategies that need one")
    group.add_argument("--device", default="cpu", help="cpu")
    group.add_argument("--threads", type=int, help="worker threads")
    group.add_argument("--context", type=int, help="longest sequence, in tokens")
    group.add_argument("--revision", help="branch, tag or commit on the hub")
    group.add_argument("--offline", action="store_true", help="use the local hub cache only")


def _strategy_flags(verb: argparse.ArgumentParser, *, name: bool = True) -> None:
    group = verb.add_argument_group("strategy", "`omnidecode strategies` lists names and parameters")
    if name:
        group.add_argument("--strategy", default="plain", help="how tokens are found (default plain)")
    group.add_argument(
        "--param", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the strategy; repeatable"
    )
    group.add_argument(
        "--companion", action="append", default=[], metavar="NAME[:KEY=VALUE,...]", help="rides along; repeatable"
    )
    group.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="a file that registers strategies"
    )


#: Fields of SamplingParams that are no single number or word on a command line.
_REPEATED = {"stop": str, "stop_token_ids": int, "bad_words": str, "allowed_token_ids": int}
_NUMBERS = {"int": int, "float": float, "int | None": int}


def _sampling_flags(verb: argparse.ArgumentParser) -> None:
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


def _sampling(options: argparse.Namespace, llm: LLM) -> SamplingParams:
    given: dict[str, Any] = {field.name: getattr(options, field.name, None) for field in fields(SamplingParams)}
    given = {name: value for name, value in given.items() if value is not None}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    given.setdefault("max_tokens", 256)
    config = llm.get_default_sampling_params()
    base = {f.name: getattr(config, f.name) for f in fields(SamplingParams) if f.init}
    return SamplingParams(**{**base, **given})


def _open(options: argparse.Namespace) -> LLM:
    return LLM(
        options.model,
        draft=options.draft,
        device=options.device,
        threads=options.threads,
        context=options.context,
        revision=options.revision,
        local_files_only=options.offline,
    )


def _strategy(options: argparse.Namespace, name: str | None = None) -> Strategy:
    """The strategy with its ``--param`` values, typed by the registry."""
    _plugins(options)
    name = name or options.strategy
    known = {entry["name"]: entry for entry in registry()}
    return resolve({"name": name, **_parameters("--param", name, known.get(name), options.param)})


def _companions(options: argparse.Namespace) -> list[Any]:
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


def _plugins(options: argparse.Namespace) -> None:
    for path in options.plugin:
        import runpy

        try:
            runpy.run_path(path)
        except OSError as error:
            raise RequestError(f"--plugin: expected a Python file, found {error}") from None


def _lines(path: Path) -> list[str]:
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


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False)
    print()


def _facts(output: RequestOutput) -> str:
    tokens = sum(len(one.token_ids) for one in output.outputs)
    usage = output.usage
    return (
        f"[{output.strategy}, {output.guarantee}: {tokens} tokens, {usage.forwards} forwards, "
        f"{tokens / max(usage.forwards, 1):.2f} tokens per forward, {', '.join(str(o.finish_reason) for o in output.outputs)}]"
    )


def _generate(options: argparse.Namespace) -> int:
    strategy = _strategy(options)
    prompts = _lines(options.file) if options.file else []
    if not options.prompts and not options.file:
        prompts = [sys.stdin.read().removesuffix("\n")]
    prompts += [sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt for prompt in options.prompts]
    with _open(options) as llm:
        sampling = _sampling(options, llm)
        asked: list[Any] = [[{"role": "user", "content": p}] if options.chat else p for p in prompts]
        if len(asked) == 1 and sampling.n == 1 and not options.json:
            with llm.stream(asked[0], sampling, strategy=strategy, companions=_companions(options)) as stream:
                for delta in stream:
                    print(delta.text, end="", flush=True)
                print()
                print(_facts(stream.result), file=sys.stderr)
            return 0
        with Progress("prompts") as progress:
            if options.chat:
                outputs = llm.chat(asked, sampling, strategy=strategy, companions=_companions(options))
            else:
                outputs = llm.generate(
                    asked, sampling, strategy=strategy, companions=_companions(options), progress=progress
                )
        if options.json:
            _print_json([output.to_dict() for output in outputs])
            return 0
        for output in outputs:
            for one in output.outputs:
                print(one.text)
            print(_facts(output), file=sys.stderr)
    return 0


def _chat(options: argparse.Namespace) -> int:
    strategy = _strategy(options)
    talks = sys.stdin.isatty() and sys.stdout.isatty()
    with _open(options) as llm:
        sampling = _sampling(options, llm)
        if sampling.n != 1:
            raise RequestError(f"--n: expected 1 in a chat, found {sampling.n}")
        messages: list[dict[str, str]] = [{"role": "system", "content": options.system}] if options.system else []
        if talks:
            print("Ctrl-D ends, Ctrl-C stops an answer.", file=sys.stderr)
        while True:
            try:
                line = input("> ") if talks else sys.stdin.readline()
            except (EOFError, KeyboardInterrupt):
                print(file=sys.stderr)
                return 0
            if not line:
                if talks:
                    continue
                return 0
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line.rstrip("\n")})
            stream = llm.stream(messages, sampling, strategy=strategy, companions=_companions(options))
            try:
                for delta in stream:
                    if not options.json:
                        print(delta.text, end="", flush=True)
            except KeyboardInterrupt:
                if not talks:
                    raise
            output = stream.result
            messages.append({"role": "assistant", "content": output.outputs[0].text})
            if options.json:
                _print_json(output.to_dict())
            else:
                print()
                print(_facts(output), file=sys.stderr)
            sys.stdout.flush()


def _bench(options: argparse.Namespace) -> int:
    _plugins(options)
    known = {entry["name"]: entry for entry in registry()}
    names = options.strategies.split(",") if options.strategies else [n for n, e in known.items() if not e["needs"]]
    chosen = [_strategy(options, name) if name != "plain" else resolve(None) for name in names]
    if options.rounds < 1:
        raise RequestError(f"--rounds: expected at least 1, found {options.rounds}")
    prompts = _lines(options.prompts) if options.prompts else None
    with _open(options) as llm:
        sampling = _sampling(options, llm)
        report = bench(
            llm,
            chosen,
            prompts[: options.limit] if prompts else None,
            sampling,
            rounds=options.rounds,
            chat=not options.completion,
            companions=_companions(options),
        )
    if options.json:
        _print_json(report.to_dict())
    else:
        print(report)
    return 0


def _report(options: argparse.Namespace) -> int:
    source, target = options.run_json, options.output
    if target is None:
        target = "-" if source == "-" else str(Path(source).with_suffix(".html"))
    if target == "-" and options.json:
        raise RequestError("--json: expected with -o FILE, found a page on standard output")
    try:
        run = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"expected a run as JSON, found {error}") from None
    page = render(load(run))
    if target == "-":
        sys.stdout.write(page)
        return 0
    try:
        Path(target).write_text(page, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"--output: expected a file that can be written, found {error}") from None
    if options.json:
        _print_json({"report": target})
    else:
        print(target)
    return 0


def _strategies(options: argparse.Namespace) -> int:
    entries = companions() if options.companions else registry()
    if options.names:
        known = {entry["name"] for entry in entries}
        for name in options.names:
            if name not in known:
                raise RequestError(f"strategies: expected one of {', '.join(sorted(known))}; found {name!r}")
        entries = [entry for entry in entries if entry["name"] in options.names]
    if options.json:
        _print_json(entries)
        return 0
    for entry in entries:
        facts = entry["guarantee"] if "guarantee" in entry else f"bends the {entry['bends']}"
        needs = f", needs {', '.join(map(str, entry['needs']))}" if entry.get("needs") else ""
        print(f"{entry['name']}  ({facts}{needs}; {entry['source']})")
        print(f"    {entry['summary']}")
        for p in entry["parameters"]:
            bounds = f", {p['range']}" if p["range"] is not None else ""
            print(f"    {p['name']}: {p['type']} = {json.dumps(p['default'])}{bounds}  {p['doc']}".rstrip())
    return 0


def _doctor(options: argparse.Namespace) -> int:
    facts = doctor(options.model)
    model_error = None
    if facts["model"]["path"] is not None:
        try:
            with _open(options) as llm:
                facts["model"]["card"] = llm.card
        except ModelError as error:
            model_error = str(error)
    else:
        model_error = facts["model"]["error"]
    facts["model"]["error"] = model_error
    facts["ok"] = model_error is None
    if options.json:
        _print_json(facts)
    else:
        for section, values in facts.items():
            if isinstance(values, dict):
                print(f"{section}")
                for name, value in values.items():
                    if value is not None:
                        print(f"    {name}: {value if not isinstance(value, (dict, list)) else json.dumps(value)}")
        print("everything is in place" if facts["ok"] else f"not ready: {model_error}")
    return 0 if facts["ok"] else 1
