#!/usr/bin/env bash
# Makes .venv from requirements/dev.txt. Idempotent: a stamp of the inputs' content says whether there is anything to do.
# FETTLE_PYTHON names the Python to use, where not the first of 3.11 to 3.13 that is found.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'setup: %s\n' "$*" >&2; }

python=""
for candidate in ${FETTLE_PYTHON:-python3.11 python3.12 python3.13 python3}; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$(command -v "$candidate")
    break
  fi
done
if [[ -z $python ]]; then
  say "${FETTLE_PYTHON:-Python 3.11 or newer} is needed and was not found; on Debian 12: apt-get install python3 python3-venv"
  exit 1
fi

stamp=$(cat requirements/{dev,training}.txt pyproject.toml tools/{setup.sh,torch_on_cpu.py} <("$python" --version) <(pwd) | sha256sum | cut -d' ' -f1)
if [[ -x .venv/bin/python && -f .venv/.stamp && $(<.venv/.stamp) == "$stamp" ]]; then exit 0; fi

start=$SECONDS
say "Python environment in .venv (some 130 packages, about 2.3 GB)"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
    say "installing Debian's python3-venv"
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends python3-venv >&2
  else
    say "Python's venv module is needed; on Debian: apt-get install python3-venv"
    exit 1
  fi
fi
if [[ ! -x .venv/bin/python ]] || ! .venv/bin/python -c '' 2>/dev/null; then rm -rf .venv && "$python" -m venv .venv; fi
if [[ ! -x .venv/bin/uv ]]; then
  [[ -x .venv/bin/pip ]] || .venv/bin/python -m ensurepip --upgrade >/dev/null
  .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
fi
export VIRTUAL_ENV=$PWD/.venv UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy
# What pip is told about its index holds for uv as well.
index=$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)
if [[ -n ${PIP_INDEX_URL:-$index} && -z ${UV_DEFAULT_INDEX:-} ]]; then export UV_DEFAULT_INDEX=${PIP_INDEX_URL:-$index}; fi
.venv/bin/uv pip install --quiet --require-hashes -r requirements/dev.txt
.venv/bin/uv pip install --quiet --no-deps --require-hashes -r requirements/training.txt
.venv/bin/python tools/torch_on_cpu.py "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" >/dev/null
.venv/bin/uv pip install --quiet --no-deps -e .
printf '%s\n' "$stamp" >.venv/.stamp
say "done in $((SECONDS - start)) s"
