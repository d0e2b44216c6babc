"""Installs torch for work on the CPU, without the gigabytes of CUDA libraries that its Linux wheel asks for.

    python tools/cpu_torch.py

The wheel is installed alone, then the pure packages that it imports. Its libraries are linked with CUDA's, which the
loader wants to find though nothing of them is ever called here: one small library stands in for all. Each of its functions
returns 100 ("no device"), which is what the real ones return on a machine without a GPU. Needs a C compiler and binutils.
Does nothing where torch can be imported already.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

TORCH = "torch>=2.4"
IMPORTED = ["filelock", "fsspec", "jinja2", "networkx", "numpy", "sympy", "typing_extensions"]
#: Libraries and functions that are CUDA's.
LIBRARY = re.compile(r"lib(cu|nv|nccl)")
FUNCTION = re.compile(r"(__)?(cu|nccl|nv)")
#: The stand-in itself is none of the names that are wanted: the loader refuses a library that asks a version of itself.
STAND_IN = "libno_device.so"


def importable() -> bool:
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def run(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout


def wanted(libraries: list[Path]) -> tuple[set[str], set[str]]:
    """Libraries of CUDA that `libraries` need and nobody has, and the functions that nobody defines."""
    needed: set[str] = set()
    undefined: set[str] = set()
    defined: set[str] = set()
    for library in libraries:
        needed.update(re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "-d", library)))
        for line in run("nm", "-D", library).splitlines():
            *_, kind, symbol = line.split()
            (undefined if kind in "Uw" else defined).add(symbol.partition("@")[0])
    have = {library.name for library in libraries}
    return {n for n in needed - have if LIBRARY.match(n)}, {s for s in undefined - defined if FUNCTION.match(s)}


def stand_in(folder: Path) -> None:
    """Puts into `folder`, where torch's own libraries lie, what they want of CUDA."""
    names, functions = wanted(sorted(folder.glob("*.so*")))
    with tempfile.TemporaryDirectory() as scratch:
        source, empty = Path(scratch, "no_device.c"), Path(scratch, "empty.c")
        aliases = (f'int {name}(void) __attribute__((alias("no_device")));' for name in sorted(functions))
        source.write_text("\n".join(["int no_device(void) { return 100; }", *aliases, ""]))
        empty.write_text("")
        run("cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{STAND_IN}", "-o", folder / STAND_IN, source)
        for name in sorted(names):
            run(
                *("cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"),
                *("-o", folder / name, empty, folder / STAND_IN),
            )
    print(f"{len(functions)} functions of {len(names)} CUDA libraries stood in for")


def main() -> int:
    if importable():
        return 0
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"]
    if sys.platform != "linux":  # elsewhere the wheel is one for the CPU
        return subprocess.run([*pip, TORCH, "numpy"]).returncode
    subprocess.run([*pip, *IMPORTED], check=True)
    subprocess.run([*pip, "--no-deps", TORCH], check=True)
    if not importable():
        stand_in(Path(sysconfig.get_paths()["purelib"], "torch", "lib"))
    run(sys.executable, "-c", "import torch; (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item()")
    return 0


if __name__ == "__main__":
    sys.exit(main())
