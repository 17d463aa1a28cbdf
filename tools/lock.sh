#!/usr/bin/env bash
# Locks every image's dependencies with hashes. dev.txt is solved first and constrains the others, so that what the tests
# ran is what the images hold. `uv pip compile` writes no registry address, which a uv.lock would.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { .venv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url pyproject.toml "$@"; }
compile --extra cli --extra server --group dev -o requirements/dev.txt
for image in operator server optimizer; do
  compile --extra "$image" --constraint requirements/dev.txt -o "requirements/$image.txt"
done
# PyTorch for the CPU: PyPI's package without NVIDIA's (tools/torch_on_cpu.py), to be installed with --no-deps on top of another lock.
without=$(printf -- '--no-emit-package %s ' triton cuda-{bindings,pathfinder,toolkit} nvidia-{cublas,cudnn-cu13,cufft,cufile} \
  nvidia-{cusolver,cusparse,cusparselt-cu13,nccl-cu13,nvjitlink,nvshmem-cu13,nvtx} nvidia-cuda-{cccl,cupti,nvrtc,runtime})
for extra in torch training transformers; do
  # shellcheck disable=SC2086  # words
  compile --extra $extra $without --constraint requirements/dev.txt -o requirements/$extra.txt
done
# What encodes texts, alone: it does without what its package asks for. In the version that the optimizer encoded with.
echo tokenizers | .venv/bin/uv pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url --no-annotate --no-deps \
  --constraint requirements/transformers.txt - -o requirements/text.txt
# Frameworks of source formats, likewise on top of the optimizer's lock.
for framework in sklearn tensorflow; do
  compile --extra "$framework" --extra optimizer --constraint requirements/dev.txt -o "requirements/$framework.txt"
done
# LiteRT, on top of the server's lock, in the version that the optimizer measured with.
compile --extra litert --constraint requirements/dev.txt --constraint requirements/tensorflow.txt -o requirements/litert.txt
# NVIDIA GPUs: the same way.
compile --extra gpu --constraint requirements/dev.txt -o requirements/gpu.txt
# The same with PyTorch for CUDA, in the version that the CPU has. Triton compiles what nobody here asks it to compile.
compile --extra gpu-torch --no-emit-package triton --constraint requirements/dev.txt --constraint requirements/torch.txt -o requirements/gpu-torch.txt
# Toolchains that have environments of their own: requirements/toolchains/NAME.txt.
.venv/bin/python -m tools.toolchains lock
