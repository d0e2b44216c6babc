"""Verbs of the command line beside decoding: watermark, rerank, calibrate, neurons, index."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import _tables, neurons, rerank, trec, trigrams, watermark, zero_tuning
from ._flags import model_flags, open_model
from .errors import RequestError

__all__ = ["add_commands"]

Verb = Callable[[Any, str, str, Any], argparse.ArgumentParser]


def add_commands(verbs: Any, verb: Verb) -> None:
    """Declare the verbs; ``verb`` makes one, with ``--json``."""
    marks = verbs.add_parser("watermark", help="read watermarks", description="Read watermarks.", allow_abbrev=False)
    detect = verb(
        marks.add_subparsers(metavar="action", required=True), "detect", "read a message out of a text", _detect
    )
    detect.add_argument("file", nargs="?", default="-", help="the text; -, the default, reads standard input")
    detect.add_argument("--ids", action="store_true", help="the file holds token ids, as numbers or as a JSON list")
    detect.add_argument("--bits", type=int, required=True, help="length of the message")
    detect.add_argument("--key", type=int, default=watermark.KEY, help=f"the writer's key (default {watermark.KEY})")
    detect.add_argument("--blocks", type=int, default=1, help="blocks of MajorMark+; 1, the default, is MajorMark")
    detect.add_argument("--every", action="store_true", help="count repeated contexts every time")
    detect.add_argument(
        "--false-positives", type=float, default=1e-3, metavar="P", help="share of other texts taken for marked (0.001)"
    )
    detect.add_argument("--model", help="the model that wrote: only its tokenizer is read")

    order = verb(verbs, "rerank", "order documents by how relevant they are to a query", _rerank)
    order.add_argument("documents", nargs="*", help="texts, with --query")
    order.add_argument("--query", help="one query; its documents follow, or are lines of --file")
    order.add_argument("--file", type=Path, help="documents, one a line")
    order.add_argument("--run", dest="ranking", type=Path, help="a TREC run to rerank, with --corpus and --queries")
    order.add_argument("--corpus", type=Path, help="documents as JSON lines with _id, title, text")
    order.add_argument("--queries", type=Path, help="queries as JSON lines with _id, text")
    order.add_argument("--judgements", type=Path, help="TREC or BEIR judgements: prints nDCG@10 before and after")
    order.add_argument("-o", "--output", type=Path, help="the reranked TREC run")
    order.add_argument(
        "--method", default="first", choices=rerank.METHODS, help="how a window is ordered (default first)"
    )
    order.add_argument("--window", type=int, default=20, help="documents shown at once (default 20)")
    order.add_argument("--stride", type=int, default=10, help="places between windows (default 10)")
    order.add_argument("--depth", type=int, default=100, help="documents a query (default 100)")
    order.add_argument("--words", type=int, default=300, help="words of a document that are shown (default 300)")
    model_flags(order)

    tune = verb(verbs, "calibrate", "choose heads and gamma of the companion zero-tuning", _calibrate)
    tune.add_argument("examples", type=Path, help="JSON lines with prompt and, unless unsupervised, answer")
    tune.add_argument(
        "--label", action="append", default=[], help="an answer there is, as it stands behind a prompt; repeatable"
    )
    tune.add_argument("--gamma", action="append", type=float, default=[], help="a gamma to try; repeatable")
    model_flags(tune)

    reading = verb(verbs, "neurons", "read what the head says of every feed-forward neuron", _neurons)
    reading.add_argument(
        "--concept", action="append", default=[], help="a token: list the neurons nearest to all given ones"
    )
    reading.add_argument("--part", default="up", choices=("up", "gate", "down"), help="which vectors (default up)")
    reading.add_argument("--top", type=int, default=5, help="tokens kept for each neuron (default 5)")
    for name in ("negative", "fold-input", "fold-output", "cosine", "control"):
        reading.add_argument(
            f"--{name}", action="store_true", help=f"see omnidecode.neurons.map({name.replace('-', '_')}=)"
        )
    model_flags(reading)

    counting = verb(verbs, "index", "count the tri-grams of texts into a table for the strategy aded", _index)
    counting.add_argument("files", nargs="+", type=Path, help="texts, or JSON lines (.jsonl) with `ids` or `text`")
    counting.add_argument("-o", "--output", type=Path, required=True, help="the table")
    counting.add_argument(
        "--least", type=int, default=1, help="leave out what was seen fewer times (default 1: nothing)"
    )
    model_flags(counting)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, ensure_ascii=False)
    print()


def _text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"expected a text file, found {error}") from None


def _detect(options: argparse.Namespace) -> int:
    text: str | list[int] = _text(options.file)
    if options.ids:
        try:
            text = [int(word) for word in str(text).translate(str.maketrans("[],", "   ")).split()]
        except ValueError as error:
            raise RequestError(f"--ids: expected token ids, found {error}") from None
    found = watermark.detect(
        text,
        bits=options.bits,
        key=options.key,
        blocks=options.blocks,
        dedup=not options.every,
        false_positives=options.false_positives,
        model=options.model,
    )
    if options.json:
        _print_json(found.to_dict())
    else:
        print(found.message if found.detected else "no watermark")
        print(f"[p = {found.p_value:.3g}, z = {found.z:.2f}, {found.counted} tokens counted]", file=sys.stderr)
    return 0


def _rerank(options: argparse.Namespace) -> int:
    settings = {name: getattr(options, name) for name in ("window", "stride", "method", "words")}
    if options.query is not None:
        if options.ranking:
            raise RequestError("--run: expected either --query or --run, found both")
        texts = [*options.documents, *(_text(str(options.file)).splitlines() if options.file else [])]
        with open_model(options) as llm:
            (found,) = rerank.rerank(llm, [options.query], [texts], **settings)
        if options.json:
            _print_json(found.to_dict())
        else:
            for at in found.order:
                print(texts[at])
            print(f"[{found.windows} windows, {found.usage.host_reads} passes]", file=sys.stderr)
        return 0
    if not (options.ranking and options.corpus and options.queries):
        raise RequestError("rerank: expected --query, or --run with --corpus and --queries; found neither")
    before = {
        query: [doc for doc, _ in docs[: options.depth]] for query, docs in trec.read_run(options.ranking).items()
    }
    corpus, queries = trec.read_corpus(options.corpus), trec.read_corpus(options.queries)
    for name, known, wanted in (
        ("--queries", queries, list(before)),
        ("--corpus", corpus, [doc for docs in before.values() for doc in docs]),
    ):
        missing = [one for one in wanted if one not in known]
        if missing:
            raise RequestError(f"{name}: expected every name of the run, found none for {missing[0]!r}")
    with open_model(options) as llm:
        texts_of = [[corpus[doc] for doc in docs] for docs in before.values()]
        rankings = rerank.rerank(llm, [queries[query] for query in before], texts_of, **settings)
    after = {q: [docs[at] for at in found.order] for (q, docs), found in zip(before.items(), rankings, strict=True)}
    if options.output:
        trec.write_run(options.output, after, tag=f"omnidecode-{options.method}")
    facts: dict[str, Any] = {
        "queries": len(after),
        "windows": sum(found.windows for found in rankings),
        "passes": sum(found.usage.host_reads for found in rankings),
        "cached_tokens": sum(found.usage.cached_tokens for found in rankings),
    }
    if options.judgements:
        grades = trec.read_judgements(options.judgements)
        for name, run in (("before", before), ("after", after)):
            each = [trec.ndcg(docs, grades.get(query, {})) for query, docs in run.items()]
            facts[f"ndcg10_{name}"] = sum(each) / max(len(each), 1)
    if options.json:
        _print_json({**facts, "run": after})
    else:
        print(
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in facts.items()
            )
        )
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    examples = []
    for number, line in enumerate(_text(str(options.examples)).splitlines(), 1):
        if line.strip():
            try:
                entry = json.loads(line)
                examples.append(zero_tuning.Example(entry["prompt"], entry.get("answer") if options.label else None))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise RequestError(
                    f"{options.examples}:{number}: expected an object with 'prompt' and 'answer'"
                ) from None
    with open_model(options) as llm:
        found = zero_tuning.calibrate(llm, examples, options.label, gammas=options.gamma or zero_tuning.GRID)
    _show(found.to_dict(), options.json)
    return 0


def _neurons(options: argparse.Namespace) -> int:
    names = ("part", "top", "negative", "fold_input", "fold_output", "cosine", "control", "threads")
    with open_model(options) as llm:
        found = neurons.map(llm, **{name: getattr(options, name) for name in names})
        page = found.to_dict(llm)
        if options.concept:
            hits = found.find(options.concept, llm)[:20]
            rows = [
                {
                    "layer": hit.layer,
                    "neuron": hit.neuron,
                    "probability": hit.probability,
                    "z": hit.z,
                    "tokens": ", ".join(repr(llm.detokenize([id])) for id, _ in found.likeliest(hit.layer, hit.neuron)),
                }
                for hit in hits
            ]
            page["tables"].insert(0, {"title": f"Nearest to {', '.join(map(repr, options.concept))}", "rows": rows})
    _show(page, options.json)
    return 0


def _index(options: argparse.Namespace) -> int:
    with open_model(options) as llm:
        found = trigrams.index(llm, options.files, options.output, least=options.least)
    if options.json:
        _print_json(found.to_dict())
    else:
        print(", ".join(f"{name} {value}" for name, value in found.to_dict().items()))
    return 0


def _show(page: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(page)
        return
    print(page["heading"])
    print()
    print(_tables.markdown(_tables.read(page)))
