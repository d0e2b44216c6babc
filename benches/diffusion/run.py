"""The diffusion tables of docs/benchmarks.md: measured in one go, written by no hand.

    python benches/diffusion/run.py measure --build "release wheel" --threads 2 --out benches/results/<date>-<machine>-diffusion.json
    python benches/diffusion/run.py write benches/results/<date>-<machine>-diffusion.json docs/benchmarks.md

`measure` runs the rows below of `omnidecode bench diffusion` on the trained models of the repository, and `overhead.py`: about eight
minutes on two cores. Give it a wheel built for release and a machine with nothing else to do. `write` puts the tables between the two
marks in the document.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import overhead

import omnidecode
from omnidecode import strategies as S
from omnidecode.bench_diffusion import SUITES, bench_diffusion, models_folder

BEGIN, END = "<!-- diffusion tables: begin -->", "<!-- diffusion tables: end -->"
#: Questions and rounds of each task. A static loop over chains-long alone takes a second a question.
SIZES = {"sudoku": (96, 3), "chains": (48, 3), "chains-long": (32, 2)}


def rows(task: str) -> list[Any] | None:
    """Beside the static loop and the twin; `None`: the whole built-in table."""
    if task == "sudoku":
        return None
    block = SUITES[task].block
    full = [
        S.Llada(block=block, cache="dual"),
        S.Llada(block=block, cache="delayed"),
        S.Llada(block=block, cache="delayed", order="sequential"),
        S.Llada(block=block, unmasker="threshold"),
        *(S.Llada(block=block, unmasker="threshold", cache=cache) for cache in ("prefix", "dual", "delayed")),
        S.Llada(block=block, unmasker="threshold", threshold=0.95, cache="dual"),
    ]
    if task == "chains-long":
        return full
    causal = [S.Sdar(), S.Sdar(unmasker="threshold"), S.Freedave()]
    return [
        *full,
        *(S.Llada(block=block, unmasker=unmasker, cache="dual") for unmasker in ("localleap", "credit")),
        *(S.Llada(block=block, unmasker="prophet", exit_gaps=gaps) for gaps in ([7.5, 5.0, 2.5], [12.0, 12.0, 9.0])),
        S.Dream(unmasker="threshold"),
        S.Freedave(block=block, cache="dual"),
        *(("block", strategy) for strategy in causal),
    ]


def stolen() -> int:
    """Ticks that the hypervisor took from this machine so far; 0 where it does not say."""
    try:
        return int(Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[8])
    except (OSError, IndexError):
        return 0


def measure(tasks: list[str], threads: int | None, build: str, small: bool) -> dict[str, Any]:
    models, before, reports = models_folder(), stolen(), []
    for task in tasks:
        count, rounds = (2, 1) if small else SIZES[task]
        report = bench_diffusion(
            SUITES[task], models, count=count, rounds=rounds, strategies=rows(task), threads=threads
        )
        print(report, file=sys.stderr, flush=True)
        reports.append(report.to_dict())
    return {
        "omnidecode": omnidecode.__version__,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "build": build,
        "threads": threads,
        "stolen_ticks": stolen() - before,
        "diffusion": reports,
        "large": overhead.measure(threads, layers=2 if small else 12),
    }


def tables(run: dict[str, Any]) -> str:
    """Markdown: a table a task, then what the issue of diffusion asks for."""
    facts = [run["build"], run["machine"], f"{run['threads']} threads" if run["threads"] else ""]
    facts = [fact for fact in facts if fact] + [f"{run['stolen_ticks']} ticks stolen by the host"]
    parts = [f"Measured {run['date']}: {', '.join(facts)}."]
    for report in run["diffusion"]:
        rounds = f"median of {report['rounds']} rounds" if report["rounds"] > 1 else "one round"
        parts.append(
            f"**{report['task']}** ({report['questions']} questions, canvas of {report['canvas']}, {rounds}):\n\n"
            "| strategy | exact, % | NFE | tokens/NFE | × static | × twin | outside, % |\n|---|---|---|---|---|---|---|\n"
            + "\n".join(line(report["task"], row) for row in report["rows"])
        )
    parts.append("| | | asked for |\n|---|---|---|\n" + "\n".join(goals(run)))
    return "\n\n".join(parts)


def line(task: str, row: dict[str, Any]) -> str:
    given = [f"{key} {value}" for key, value in row["parameters"].items() if key != "block"]
    label = " ".join([row["strategy"], ", ".join(given)]).strip()
    if row["model"] != f"{task}-diffusion":
        label += f" ({row['model']})"
    ratios = [row["ratio_to_static"], row["ratio_to_autoregressive"]]
    numbers = [f"{row['accuracy']:.1f}", f"{row['nfe_per_question']:.1f}", f"{row['tokens_per_forward']:.2f}"]
    numbers += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    numbers.append(f"{100 * row['overhead']:.1f}")
    return f"| {' | '.join([label, *numbers])} |"


def goals(run: dict[str, Any]) -> list[str]:
    found = []
    for report in run["diffusion"]:
        static = report["rows"][0]
        for row in report["rows"]:
            given = {k: v for k, v in row["parameters"].items() if k != "block"}
            if row["strategy"] == "llada" and given == {"unmasker": "threshold", "cache": "dual"}:
                apart = row["accuracy"] - static["accuracy"]
                found.append(
                    f"| {report['task']}: threshold 0.9 with the dual cache over the static loop | "
                    f"{row['ratio_to_static']:.1f} times as fast, {apart:+.1f} points | 5 times, within 1 point |"
                )
    diffusion = [row for report in run["diffusion"] for row in report["rows"] if row["model"] != f"{report['task']}-ar"]
    shares = [100 * row["overhead"] for row in diffusion]
    ends = [100 * row["overhead_with_ends"] for row in diffusion]
    large, millions = [100 * row["overhead"] for row in run["large"]["rows"]], run["large"]["parameters"] / 1e6
    for words, each in (
        ("on these models", shares),
        ("on these models, the ends of requests and the waking of their readers counted too", ends),
        (f"on {millions:.0f} million random parameters in LLaDA's layout", large),
    ):
        asked = "" if each is ends else "2 %"
        found.append(
            f"| time outside the forward, diffusion loops {words} | {min(each):.2f} to {max(each):.2f} % | {asked} |"
        )
    return found


def write(run: dict[str, Any], document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{document}: expected {BEGIN} and {END} once each")
    head, _, rest = text.partition(BEGIN)
    document.write_text(f"{head}{BEGIN}\n{tables(run)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("measure", help="run, and write the raw figures")
    run.add_argument("--out", type=Path, required=True, metavar="JSON")
    run.add_argument("--tasks", nargs="+", choices=SIZES, default=list(SIZES))
    run.add_argument("--threads", type=int)
    run.add_argument("--build", default="", help="how the wheel was built, in words for the document")
    run.add_argument("--small", action="store_true", help="two questions and one round, to see that it runs")
    put = verbs.add_parser("write", help="write the tables into a document")
    put.add_argument("results", type=Path, metavar="JSON")
    put.add_argument("document", type=Path)
    given = parser.parse_args()
    if given.verb == "measure":
        figures = measure(given.tasks, given.threads, given.build, given.small)
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    else:
        write(json.loads(given.results.read_text(encoding="utf-8")), given.document)


if __name__ == "__main__":
    main()
