"""What the server says of itself and of its model, whichever front is asked."""

from __future__ import annotations

from typing import Any

from fettle import __version__
from fettle.api.signature import Tensor
from fettle.server.model import ServedModel
from fettle.server.settings import ServerSettings

EXTENSIONS = ("binary_tensor_data",)


def server() -> dict[str, Any]:
    """Name, version and extensions."""
    return {"name": "fettle", "version": __version__, "extensions": list(EXTENSIONS)}


def platform(form: str, runtime: str) -> str:
    """'onnx_onnxruntime': format and runtime; one name where they have the same."""
    return "_".join(dict.fromkeys((form.lower(), runtime)))


def model(settings: ServerSettings, served: ServedModel) -> dict[str, Any]:
    """Inputs and outputs, -1 where a size varies, and under `parameters` which artifact this is, how it was made, how pictures or
    texts become its inputs and what was measured of it."""
    manifest = served.manifest
    return {
        "name": settings.model,
        "versions": [settings.revision],
        "platform": platform(manifest.model.format, manifest.runtime),
        "inputs": _tensors(manifest.signature.inputs),
        "outputs": _tensors(manifest.signature.outputs),
        "parameters": {
            "sha256": settings.sha256,
            "bytes": manifest.bytes,
            "source_sha256": manifest.source_sha256,
            "recipe": manifest.recipe.to_json(),
            "runtime": manifest.runtime,
            "settings": manifest.settings.to_json(),
            "requires": list(manifest.requires),
            **({"preprocess": manifest.preprocess.to_json()} if manifest.preprocess is not None else {}),
            **({"tokenizer": manifest.tokenizer.to_json()} if manifest.tokenizer is not None else {}),
            "measured": [record.to_json() for record in served.figures],
        },
    }


def status(settings: ServerSettings, ready: bool) -> dict[str, Any]:
    """The model's state in the words of the V1 protocol: KServe's (`ready`), and TensorFlow Serving's."""
    version = {
        "version": settings.revision,
        "state": "AVAILABLE" if ready else "UNLOADING",
        "status": {"error_code": "OK", "error_message": ""},
    }
    return {"name": settings.model, "ready": ready, "model_version_status": [version]}


def _tensors(side: tuple[Tensor, ...]) -> list[dict[str, Any]]:
    return [{"name": tensor.name, "datatype": tensor.dtype, "shape": tensor.free_shape} for tensor in side]
