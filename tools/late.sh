#!/bin/sh
# late.sh MODULE.so [KERNELS]: fails if fewer images of kernels than that are in a built module, if a built module needs a CUDA library, or has an undefined symbol that is neither Python's nor
# the C library's: it must import where there is no driver.
set -eu
images=$(LC_ALL=C grep -aoP '\x50\xed\x55\xba' "$1" | wc -l)
if [ "$images" -lt "${2:-0}" ]; then
    echo "$1: expected ${2:-0} images of kernels, found $images: was nvcc found?" >&2
    exit 1
fi
needed=$(readelf -d "$1" | grep NEEDED | grep -E 'lib(cuda|cudart|cublas|cublasLt|curand|nvrtc)' || true)
undefined=$(nm -D --undefined-only "$1" | awk '$1 == "U" { print $2 }' | grep -vE '@|^_?Py' || true)
if [ -n "$needed$undefined" ]; then
    echo "$1 does not bind late: $needed $undefined" >&2
    exit 1
fi
echo "$1: $(readelf -d "$1" | grep -c NEEDED) needed libraries, none of CUDA; $images images of kernels; $(wc -c < "$1") bytes"
