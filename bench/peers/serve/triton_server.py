"""NVIDIA Triton itself, from the wheel nvidia-pytriton, with a model of its Python backend."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from bench.peers.serve.job import ServeJob, read

CONFIGURATION = """
name: "{name}"
backend: "python"
max_batch_size: 0
input [{{ name: "x" data_type: TYPE_{datatype} dims: {shape} }}]
output [{{ name: "y" data_type: TYPE_FP32 dims: [-1, {classes}] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""


def repository(job: ServeJob) -> Path:
    """A model repository with the one model."""
    folder = job.folder / "triton" / "models"
    model = folder / job.name
    (model / "1").mkdir(parents=True, exist_ok=True)
    told = {"name": job.name, "datatype": job.datatype, "shape": [-1, *job.item], "classes": job.classes}
    (model / "config.pbtxt").write_text(CONFIGURATION.format(**told))
    shutil.copy(Path(__file__).with_name("triton_model.py"), model / "1" / "model.py")
    return folder


def backends(server: Path, folder: Path) -> Path:
    """The backends, and the stub for this Python beside the one that needs it."""
    target = folder / "triton" / "backends"
    if not target.exists():
        shutil.copytree(server / "backends", target)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = "triton_python_backend_stub"
    shutil.copy(server / "python_backend_stubs" / version / stub, target / "python" / stub)
    return target


if __name__ == "__main__":
    job = read()
    packages = Path(sysconfig.get_paths()["purelib"])
    server = packages / "pytriton" / "tritonserver"
    libraries = [packages / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    os.environ["BENCH_SERVE_PATH"] = os.pathsep.join([str(packages), str(Path(__file__).resolve().parents[3])])
    words = [str(server / "bin" / "tritonserver"), "--model-repository", str(repository(job))]
    words += ["--backend-directory", str(backends(server, job.folder)), "--http-port", str(job.port)]
    words += ["--grpc-port", str(job.grpc_port), "--allow-metrics", "false", "--disable-auto-complete-config"]
    os.execv(words[0], [*words, "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"])
