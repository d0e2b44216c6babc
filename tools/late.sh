#!/bin/sh
# late.sh MODULE.so: fails if a built module needs a CUDA library, or has an undefined symbol that is neither Python's nor
# the C library's: it must import where there is no driver.
set -eu
needed=$(readelf -d "$1" | grep NEEDED | grep -E 'lib(cuda|cudart|cublas|cublasLt|curand|nvrtc)' || true)
undefined=$(nm -D --undefined-only "$1" | awk '$1 == "U" { print $2 }' | grep -vE '@|^_?Py' || true)
if [ -n "$needed$undefined" ]; then
    echo "$1 does not bind late: $needed $undefined" >&2
    exit 1
fi
echo "$1: $(readelf -d "$1" | grep -c NEEDED) needed libraries, none of CUDA; $(wc -c < "$1") bytes"
