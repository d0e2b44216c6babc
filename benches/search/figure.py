"""The table and the figure of `run.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Okabe and Ito's colours, told apart by colour-blind people; and a mark each.
STYLES = {
    "best-of-n": ("#0072B2", "o"),
    "best-of-n, weighted": ("#56B4E9", "v"),
    "self-consistency": ("#999999", "s"),
    "particle": ("#009E73", "D"),
    "judge-beam": ("#E69F00", "^"),
    "a-star": ("#D55E00", "*"),
    "beam": ("#CC79A7", "P"),
    "plain, greedy": ("#000000", "x"),
    "plain, sampled": ("#000000", "+"),
}


def shown(rows: list[Row], task: str, noise: float, search: str) -> list[Row]:
    """The rows of a curve. What asks no judge is the same under every noise."""
    of = [r for r in rows if r["task"] == task and r["search"] == search]
    return [r for r in of if r["noise"] == noise] or [r for r in of if r["noise"] == 0]


def table(rows: list[Row]) -> str:
    """Markdown, a table a task: accuracy with its interval under each noise, at each budget, and what it cost."""
    lines = []
    for task in dict.fromkeys(r["task"] for r in rows):
        noises = sorted({r["noise"] for r in rows})
        heads = ["search", "n", *(f"noise {noise:g}" for noise in noises), "tokens", "judged", "judge calls"]
        lines += ["", f"**{task}**", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in (r for r in rows if r["task"] == task and r["noise"] == 0):
            cells = [row["search"], str(row["n"])]
            for noise in noises:
                found = next(r for r in shown(rows, task, noise, row["search"]) if r["n"] == row["n"])
                asked = found["noise"] == noise
                cells.append(f"{found['accuracy']} ({found['low']} to {found['high']})" if asked else "the same")
            cells += [f"{row['tokens']:.0f}", f"{row['judged']:.1f}", f"{row['judge_calls']:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy over generated tokens; tasks from top to bottom, noise from left to right."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "search", "font.size": 9}
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    noises = sorted({r["noise"] for r in rows})
    figure, axes = pyplot.subplots(
        len(tasks),
        len(noises),
        figsize=(3.4 * len(noises), 2.9 * len(tasks)),
        sharex="row",
        sharey="row",
        squeeze=False,
    )
    for line, task in zip(axes, tasks):
        for panel, noise in zip(line, noises):
            for search, (colour, mark) in STYLES.items():
                points = sorted(shown(rows, task, noise, search), key=lambda r: r["tokens"])
                if not points:
                    continue
                x, y = [p["tokens"] for p in points], [p["accuracy"] for p in points]
                panel.plot(x, y, color=colour, marker=mark, markersize=5, linewidth=1.2, label=search)
                panel.fill_between(
                    x, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.1, linewidth=0
                )
            panel.set_xscale("log", base=2)
            panel.set_title(f"{task}, noise {noise:g}", fontsize=9)
            panel.grid(alpha=0.3)
        line[0].set_ylabel("right answers, %")
    for panel in axes[-1]:
        panel.set_xlabel("generated tokens a question")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / (2.9 * len(tasks)), 1, 1))
    figure.savefig(path, metadata={"Date": None})
