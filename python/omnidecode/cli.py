"""The command ``omnidecode``: generate, chat, bench, report, strategies, watermark, rerank, calibrate, neurons, index,
doctor.

Exit codes: 0 done, 1 it failed, 2 the command line was wrong, 130 interrupted. Answers go to standard output, everything
else to standard error; ``--json`` prints one JSON value on standard output and nothing else there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, _tools, bench_diffusion
from ._companion import companions
from ._flags import (
    load_plugins,
    model_flags,
    open_model,
    read_answers,
    read_companions,
    read_named,
    read_prompts,
    read_sampling,
    read_strategy,
    sampling_flags,
    strategy_flags,
)
from ._show import Show
from ._strategy import registry, resolve
from .bench import PROMPTS, bench
from .doctor import doctor
from .errors import ModelError, OmnidecodeError, RequestError
from .outputs import RequestOutput
from .progress import Progress
from .report import load, render

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
        print(getattr(error, "traceback", ""), end="", file=sys.stderr)  # of a plugin's code
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
    generate.add_argument(
        "--show", action="store_true", help="show the canvas of a diffusion strategy as it is decided"
    )
    model_flags(generate)
    strategy_flags(generate)
    sampling_flags(generate)

    chat = _verb(verbs, "chat", "talk; standard input is one message a line", _chat)
    chat.add_argument("--system", help="a system message")
    model_flags(chat)
    strategy_flags(chat)
    sampling_flags(chat)

    timing = _verb(verbs, "bench", "measure strategies against plain decoding, alternating", _bench)
    timing.add_argument("--prompts", type=Path, help="a file of prompts: one a line, or JSON lines; default: built in")
    timing.add_argument(
        "--strategies", help="names, separated by commas; default: the exact ones that need only the model"
    )
    timing.add_argument(
        "--with",
        dest="named",
        action="append",
        default=[],
        metavar="NAME:KEY=VALUE,...",
        help="a strategy with its own parameters (lists by semicolons); repeatable",
    )
    timing.add_argument("--rounds", type=int, default=3, help="how often each strategy runs (default 3)")
    timing.add_argument("--limit", type=int, help="use the first prompts only")
    timing.add_argument("--completion", action="store_true", help="use the prompts as they are, without chat template")
    model_flags(timing)
    strategy_flags(timing, name=False)
    sampling_flags(timing)
    bench_diffusion.add_command(timing)

    drawing = _verb(verbs, "report", "draw a run as one HTML page", _report)
    drawing.add_argument(
        "run_json", metavar="RUN.json", help="what another command printed with --json, or - for standard input"
    )
    drawing.add_argument("-o", "--output", help="the page, or - for standard output (default: RUN.html)")

    listing = _verb(verbs, "strategies", "list the strategies and their parameters", _strategies)
    listing.add_argument("names", nargs="*", help="only these")
    listing.add_argument("--companions", action="store_true", help="list the companions instead")

    _tools.add_commands(verbs, _verb)

    examine = _verb(verbs, "doctor", "say what this machine and installation offer", _doctor)
    model_flags(examine)
    return parser


def _verb(verbs: Any, name: str, help: str, run: Any) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help, allow_abbrev=False)
    verb.add_argument("--json", action="store_true", help="print JSON")
    verb.set_defaults(run=run)
    return verb


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False)
    print()


def _facts(output: RequestOutput) -> str:
    answers = [one for one in output.outputs if one.beside is None]
    tokens = sum(len(one.token_ids) for one in answers)
    usage = output.usage
    return (
        f"[{output.strategy}, {output.guarantee}: {tokens} tokens, {usage.forwards} forwards, "
        f"{tokens / max(usage.forwards, 1):.2f} tokens per forward, {', '.join(str(o.finish_reason) for o in answers)}]"
    )


def _generate(options: argparse.Namespace) -> int:
    strategy = read_strategy(options)
    prompts = read_prompts(options.file) if options.file else []
    if not options.prompts and not options.file:
        prompts = [sys.stdin.read().removesuffix("\n")]
    prompts += [sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt for prompt in options.prompts]
    if options.show and (len(prompts) != 1 or options.json):
        raise RequestError("--show: expected one prompt, and not --json")
    if options.show and "mask" not in strategy.spec["needs"]:
        raise RequestError(f"--show: expected a strategy with a canvas, found {strategy.name!r}")
    with open_model(options) as llm:
        sampling = read_sampling(options, llm)
        if options.show and sampling.n != 1:
            raise RequestError(f"--n: expected 1 with --show, found {sampling.n}")
        asked: list[Any] = [[{"role": "user", "content": p}] if options.chat else p for p in prompts]
        if len(asked) == 1 and sampling.n == 1 and not options.json:
            show = Show(sys.stdout, llm.card["mask"]) if options.show else None
            with llm.stream(
                asked[0],
                sampling,
                strategy=strategy,
                companions=read_companions(options),
                judge=options.judge,
                watch=options.show,
            ) as stream:
                for delta in stream:
                    if show:
                        show.update(delta.marks)
                    else:
                        print(delta.text, end="", flush=True)
                print(stream.result.outputs[0].text if show else "")
                print(_facts(stream.result), file=sys.stderr)
            return 0
        with Progress("prompts") as progress:
            if options.chat:
                outputs = llm.chat(
                    asked, sampling, strategy=strategy, companions=read_companions(options), judge=options.judge
                )
            else:
                outputs = llm.generate(
                    asked,
                    sampling,
                    strategy=strategy,
                    companions=read_companions(options),
                    judge=options.judge,
                    progress=progress,
                )
        if options.json:
            _print_json([output.to_dict() for output in outputs])
            return 0
        for output in outputs:
            for one in output.outputs:
                if one.beside is None:
                    print(one.text)
            print(_facts(output), file=sys.stderr)
    return 0


def _chat(options: argparse.Namespace) -> int:
    strategy = read_strategy(options)
    talks = sys.stdin.isatty() and sys.stdout.isatty()
    with open_model(options) as llm:
        sampling = read_sampling(options, llm)
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
            stream = llm.stream(
                messages, sampling, strategy=strategy, companions=read_companions(options), judge=options.judge
            )
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
    load_plugins(options)
    known = {entry["name"]: entry for entry in registry()}
    names = (
        options.strategies.split(",")
        if options.strategies
        else []
        if options.named
        else [n for n, e in known.items() if e["guarantee"] == "exact" and not e["needs"]]
    )
    chosen = [read_strategy(options, name) if name != "plain" else resolve(None) for name in names]
    chosen += [read_named("--with", text) for text in options.named]
    if options.rounds < 1:
        raise RequestError(f"--rounds: expected at least 1, found {options.rounds}")
    if options.limit is not None and options.limit < 1:
        raise RequestError(f"--limit: expected at least 1, found {options.limit}")
    prompts = read_prompts(options.prompts) if options.prompts else PROMPTS
    answers = read_answers(options.prompts)[: options.limit] if options.prompts else []
    with open_model(options) as llm:
        sampling = read_sampling(options, llm)
        report = bench(
            llm,
            chosen,
            prompts[: options.limit],
            sampling,
            rounds=options.rounds,
            chat=not options.completion,
            companions=read_companions(options),
            judge=options.judge,
            answers=answers,
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
        judged = ", asks a judge" if entry.get("judged") else ""
        print(f"{entry['name']}  ({facts}{needs}{judged}; {entry['source']})")
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
            with open_model(options) as llm:
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
