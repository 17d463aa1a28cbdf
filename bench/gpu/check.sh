#!/usr/bin/env bash
# Runs bench/gpu/check.py on a machine with one NVIDIA GPU and Python 3.11 or newer, and nothing else installed. See README.md beside it.
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf 'check-gpu: %s\n' "$*" >&2; }
wheels=bench/gpu/wheels
environment=${FETTLE_GPU_ENVIRONMENT:-.cache/bench-gpu}
python=""
for candidate in ${FETTLE_PYTHON:-python3.11 python3.12 python3.13 python3}; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
[[ -n $python ]] || { say "Python 3.11 or newer is needed"; exit 1; }
# An environment without pip is what is left where venv could not make a whole one.
"$environment/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv "$environment" ||
  { say "$python cannot make an environment: install its modules venv and ensurepip (Debian: the package python3-venv)"; exit 1; }
chosen=$(mktemp)
trap 'rm -f "$chosen"' EXIT
# Installs those packages of a lock file whose first line does or does not match, as awk writes it.
locked() {
  awk "/^[a-z]/ { kept = \$0 $2 } kept" "$1" >"$chosen"
  "$environment/bin/python" -m pip install --quiet --no-deps --require-hashes -r "$chosen"
}
# Parts of wheels that were too large to be carried whole: NAME.whl.part-aa, NAME.whl.part-ab, ...
for first in "$wheels"/*.whl.part-aa; do
  [[ -e $first ]] && cat "${first%aa}"* >"${first%.part-aa}" && rm "${first%aa}"*
done
if compgen -G "$wheels/*.whl" >/dev/null; then
  say "installing the wheels in $wheels"
  "$environment/bin/python" -m pip install --quiet --no-index --no-deps "$wheels"/*.whl
else
  # With PyTorch 6 GB, without it 3.7.
  lock=requirements/gpu-torch.txt
  [[ ${FETTLE_GPU_TORCH:-1} == 1 ]] || lock=requirements/gpu.txt
  say "installing the requirements locked in $lock"
  # onnxruntime has the same files as onnxruntime-gpu: whichever is removed or installed last breaks the other.
  locked requirements/server.txt '!~ /^onnxruntime==/'
  locked requirements/optimizer.txt '!~ /^onnxruntime==/'
  locked "$lock" '!~ /^tensorrt-cu12/'
  # The general library comes from NVIDIA's own index; without it its rows say so.
  locked "$lock" '~ /^tensorrt-cu12/' || say "TensorRT's general library cannot be installed here"
  # Only the server's load needs a client.
  locked requirements/dev.txt '~ /^(anyio|certifi|h11|httpcore|httpx|idna)==/' || say "without httpx the server is not put under load"
fi
export PYTHONPATH=$PWD/operator:$PWD NNCF_CI=1
"$environment/bin/python" -m bench.gpu.check "$@"
