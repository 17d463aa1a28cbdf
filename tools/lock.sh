#!/usr/bin/env bash
# Locks every image's dependencies with hashes. dev.txt is solved first and constrains the others, so that what the tests
# ran is what the images hold. `uv pip compile` writes no registry address, which a uv.lock would.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { uv pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url pyproject.toml "$@"; }
compile --extra cli --extra server --group dev -o requirements/dev.txt
for image in operator server optimizer; do
  compile --extra "$image" --constraint requirements/dev.txt -o "requirements/$image.txt"
done
