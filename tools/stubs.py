"""Write the type stubs that grow from the build: ``_core.pyi`` by PyO3's introspection, ``strategies.pyi`` from the
registry. With ``--check`` nothing is written; differences are printed and the exit code is 1.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from omnidecode._strategy import BUILT_IN

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "omnidecode"
TYPES = {"bool": "bool", "int": "int", "float": "float", "str": "str", "any": "Any"}


def python_type(kind: str) -> str:
    """A registry type as an annotation: ``int?`` is ``int | None``, ``list[int]`` a sequence."""
    inner = kind.removesuffix("?")
    name = f"Sequence[{inner[5:-1]}]" if inner.startswith("list[") else TYPES[inner]
    return f"{name} | None" if kind.endswith("?") else name


def literal(value: Any) -> str:
    """A default as it stands in a stub."""
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else "..."


def strategy_stub() -> str:
    """One class for each of the engine's strategies."""
    classes = sorted(BUILT_IN.values(), key=lambda cls: cls.__name__)
    lines = [
        "# Written by tools/stubs.py (`make stubs`).",
        "from collections.abc import Sequence",
        "",
        "from ._strategy import Strategy",
        "",
        f"__all__ = {[cls.__name__ for cls in classes]!r}",
        "",
    ]
    for cls in classes:
        parameters = [(p["name"], python_type(p["type"]), literal(p["default"])) for p in cls.spec["parameters"]]
        arguments = "".join(f", {name}: {kind} = {default}" for name, kind, default in parameters)
        lines += [
            f"class {cls.__name__}(Strategy):",
            f"    def __init__(self{', *' + arguments if arguments else ''}) -> None: ...",
        ]
        for name, kind, _ in parameters:
            lines += ["    @property", f"    def {name}(self) -> {kind}: ..."]
        lines.append("")
    return "\n".join(lines)


def core_stub() -> str:
    """What PyO3 recorded in the module."""
    with tempfile.TemporaryDirectory() as folder:
        maturin = Path(sys.executable).with_name("maturin")
        command = [maturin, "generate-stubs", "--quiet", "--out", folder]
        subprocess.run(command, cwd=ROOT, check=True)
        (path,) = Path(folder).rglob("_core.pyi")
        text = path.read_text()
    # What `await` gives is a matter of Python's protocol, which the introspection of a function's signature cannot say.
    awaited = "def __await__(self, /) -> "
    text = text.replace(f"{awaited}Flight:", f"{awaited}Generator[Flight, None, Any]:")
    text = text.replace("from os import", "from collections.abc import Generator\nfrom os import", 1)
    return "# Written by tools/stubs.py (`make stubs`).\n" + text


def main() -> int:
    """Write, or compare."""
    stale = 0
    for path, text in ((PACKAGE / "_core.pyi", core_stub()), (PACKAGE / "strategies.pyi", strategy_stub())):
        text = text.rstrip() + "\n"
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
            continue
        old = path.read_text() if path.exists() else ""
        if old != text:
            stale = 1
            sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(path), "now"))
    if stale:
        print("the stubs are stale: run `make stubs`")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
