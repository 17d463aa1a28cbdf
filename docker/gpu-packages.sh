#!/bin/sh
# Puts the packages of a lock, requirements/gpu.txt or gpu-torch.txt, on top of a slim image's environment: sh gpu-packages.sh LOCK
# With TENSORRT=1 NVIDIA's general TensorRT library is one of them. Its packages fetch it from NVIDIA's own index while they are built.
set -eu
lock=$1
fettle=${FETTLE:-/opt/fettle}
work=$(mktemp -d)
export UV_SYSTEM_CERTS=1 UV_NO_CACHE=1 UV_LINK_MODE=copy
pip install --no-cache-dir --target "$work/uv" uv==0.13.9

packages() {
  command=$1 && shift
  "$work/uv/bin/uv" pip "$command" --python "$fettle/bin/python" "$@"
}
install() { # those whose name is, or is not, one of the general library's
  awk -v wanted="$1" '/^[a-z]/ { kept = ($0 ~ /^tensorrt-cu12/) == wanted } kept' "$lock" >"$work/chosen.txt"
  packages install --no-deps --require-hashes -r "$work/chosen.txt"
}

packages uninstall onnxruntime # the one for CUDA has the same files, and takes its place
install 0
if [ "${TENSORRT:-0}" != 1 ]; then
  echo "Without TensorRT: the runtime tensorrt needs --build-arg TENSORRT=1, and a connection to NVIDIA's package index. The others need neither."
elif ! install 1; then
  echo "TensorRT cannot be installed: TENSORRT=1 needs a connection to NVIDIA's package index, from which its packages fetch the library." >&2
  exit 1
fi

rm -rf "$work"
cd "$fettle"/lib/python3.*/site-packages
# The root file system is read-only later: what Python would compile at each start is compiled here.
compiled=onnxruntime
if [ -d torch ]; then
  rm -rf torch/include
  compiled="onnxruntime onnxscript sympy torch"
fi
# shellcheck disable=SC2086  # words
"$fettle/bin/python" -m compileall -q -j 0 -x '/testing/_internal/' --invalidation-mode unchecked-hash $compiled
