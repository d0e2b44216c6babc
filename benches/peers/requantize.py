"""Another format of a GGUF file, by llama.cpp's own tool: ``python requantize.py FROM.gguf TO.gguf Q8_0|Q4_0``."""

import sys

import llama_cpp

KINDS = {"Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}


def main() -> None:
    source, target, kind = sys.argv[1:]
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = KINDS[kind]
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        sys.exit(f"{source} could not be quantized to {kind}")


if __name__ == "__main__":
    main()
