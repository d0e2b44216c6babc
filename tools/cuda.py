"""Compile the CUDA kernels for every target and hold them to their bounds; needs no GPU.

``python tools/cuda.py`` finds nvcc by ``NVCC`` or ``CUDA_HOME`` or in an installed ``nvidia-cuda-nvcc`` (13.0), compiles
``kernels/*.cu``, and fails when a kernel takes more registers or spills more bytes than
``kernels/bounds.json`` allows. With an installed ``nvidia-cuda-nvrtc`` the same sources also go through NVRTC, as they do
where ``OMNIDECODE_KERNELS`` names their folder. ``--write`` writes what was found as the new bounds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "kernels"
BOUNDS = FOLDER / "bounds.json"
ARCHITECTURES = ("80", "90a", "100")
FLAGS = ("-O3", "-std=c++17", "-fmad=false", "-Xptxas", "-v")


def toolkit() -> Path | None:
    """The folder that holds ``bin/nvcc``."""
    if "NVCC" in os.environ:
        return Path(os.environ["NVCC"]).parent.parent
    if "CUDA_HOME" in os.environ:
        return Path(os.environ["CUDA_HOME"])
    try:
        files = metadata.files("nvidia-cuda-nvcc") or []
    except metadata.PackageNotFoundError:
        return None
    nvcc = next((file.locate() for file in files if file.name == "nvcc"), None)
    return Path(str(nvcc)).resolve().parent.parent if nvcc else None


def report(nvcc: Path, source: Path, arch: str) -> dict[str, dict[str, int]]:
    """Registers, spilled bytes, stack and shared memory of each entry of a source."""
    with tempfile.TemporaryDirectory() as scratch:
        target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
        command = [str(nvcc), *FLAGS, target, "-cubin", "-o", f"{scratch}/out", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, dict[str, int]] = {}
    entry = ""
    for line in done.stderr.splitlines():
        if match := re.search(r"entry function '(\w+)'", line):
            entry = match[1]
            found[entry] = {"registers": 0, "spilled": 0, "stack": 0, "shared": 0}
        if match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found[entry]["stack"] = int(match[1])
            found[entry]["spilled"] = int(match[2]) + int(match[3])
        if match := re.search(r"Used (\d+) registers", line):
            found[entry]["registers"] = int(match[1])
        if match := re.search(r"(\d+) bytes smem", line):
            found[entry]["shared"] = int(match[1])
    return found


def nvrtc(root: Path, source: Path, arch: str) -> int | None:
    """Bytes of the cubin that NVRTC makes; ``None`` where there is no NVRTC."""
    builtins = sorted(root.glob("lib/libnvrtc-builtins.so.*"))
    libraries = sorted(root.glob("lib/libnvrtc.so.*"))
    if not builtins or not libraries:
        return None
    ctypes.CDLL(str(builtins[0]))  # found by name only when it is open
    library = ctypes.CDLL(str(libraries[0]))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    code = library.nvrtcCreateProgram(ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None)
    options = [f"--gpu-architecture=sm_{arch}", f"-I{FOLDER}", "--std=c++17", "--fmad=false"]
    words = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    code = code or library.nvrtcCompileProgram(program, len(options), words)
    if code:
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        raise SystemExit(f"{source.name}, NVRTC, sm_{arch}: {log.value.decode()}")
    library.nvrtcGetCUBINSize(program, ctypes.byref(size))
    return size.value


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", default=" ".join(ARCHITECTURES), help="of nvcc, by default all")
    parser.add_argument("--write", action="store_true", help="what is found becomes the bounds")
    options = parser.parse_args()
    root = toolkit()
    if root is None:
        print("skipped: expected nvcc (NVCC, CUDA_HOME or nvidia-cuda-nvcc 13.0 and its parts), found none")
        return 0
    sources = sorted(FOLDER.glob("*.cu"))
    architectures = options.architectures.split()
    started = time.monotonic()
    pairs = [(source, arch) for source in sources for arch in architectures]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda pair: report(root / "bin/nvcc", *pair), pairs))
    table = {arch: {} for arch in architectures}
    for (_, arch), entries in zip(pairs, found, strict=True):
        table[arch].update(entries)
    bounds = json.loads(BOUNDS.read_text()) if BOUNDS.exists() else {}
    wrong = []
    for arch, entries in table.items():
        for name, use in sorted(entries.items()):
            print(f"sm_{arch:4} {name:10}", *(f"{what} {number:5}" for what, number in use.items()))
            allowed = bounds.get(arch, {}).get(name, {"registers": 0, "spilled": 0})
            for what, most in () if options.write else allowed.items():
                if use[what] > most:
                    wrong.append(f"sm_{arch} {name}: {what} {use[what]}, allowed {most}")
    if options.write:
        for arch, entries in table.items():
            bounds[arch] = {
                name: {what: use[what] for what in ("registers", "spilled")} for name, use in sorted(entries.items())
            }
        BOUNDS.write_text(json.dumps(bounds, indent=2, sort_keys=True) + "\n")
    print(f"nvcc: {len(sources)} sources for {len(architectures)} targets in {time.monotonic() - started:.0f} s")
    sizes = [nvrtc(root, source, "90a") for source in sources]
    if None in sizes:
        print("NVRTC: skipped, expected nvidia-cuda-nvrtc 13.0 beside nvcc, found none")
    else:
        print(f"NVRTC: {len(sizes)} sources for sm_90a, {sum(size or 0 for size in sizes)} bytes")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
