"""The source of an OptimizedModel: the trained model, the code that makes it, and what its format does not tell."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fettle.api.base import ApiModel, Rule, rules
from fettle.api.uris import Address, SecretName, file_rules
from fettle.api.vocabulary import CALLABLE, FormatName, Sha256, Uri


@rules(Rule("self.min <= self.max", "range.min must not be greater than range.max"))
class ValueRange(ApiModel):
    """Bounds of the values an input takes."""

    min: Annotated[float, Field(description="Smallest generated value.")]
    max: Annotated[float, Field(description="Largest generated value.")]


class InputSpec(ApiModel):
    """What the format does not tell about one input."""

    name: Annotated[str, Field(max_length=253, description="Name of the input in the model.")]
    dtype: Annotated[str | None, Field(max_length=8, description="V2 data type, such as FP32 or INT64.")] = None
    shape: Annotated[
        tuple[int | str, ...] | None,
        Field(
            max_length=16,
            description="Size of each dimension. N is the dynamic batch dimension, any other word is another dynamic dimension.",
        ),
    ] = None
    value: Annotated[
        float | None,
        Field(description="Makes the input a constant with this value. The artifact then no longer has this input."),
    ] = None
    range: Annotated[ValueRange | None, Field(description="Range of generated values, if no data is given.")] = None


@rules(*file_rules("source.factory.uri", "a wheel, a folder or a Python file"))
class FactorySpec(ApiModel):
    """Python code that makes the module to which weights belong. It runs only inside Jobs, with the packages of their image."""

    callable: Annotated[
        str,
        Field(
            max_length=253,
            pattern=CALLABLE,
            description="module:callable that returns the torch.nn.Module. It is called without arguments.",
        ),
    ]
    uri: Annotated[
        Uri,
        Field(
            description="The code: a wheel, a folder that contains the module or package, or a Python file. Addresses as in source.uri."
        ),
    ]
    secret_name: SecretName = None
    key: Annotated[
        str | None,
        Field(
            max_length=253,
            description="Key of the state dict, for a checkpoint that contains several, such as model and ema.",
        ),
    ] = None


@rules(
    Rule(
        "!has(self.format) || self.format != 'TorchModule' || has(self.factory)",
        "source.format TorchModule needs source.factory: the code that makes the module to which the weights belong",
    ),
    Rule(
        "!has(self.factory) || !has(self.format) || self.format in ['Auto', 'TorchModule']",
        "source.factory is for the weights of a PyTorch module: remove source.format, or set it to TorchModule",
    ),
    *file_rules("source.uri"),
)
class SourceSpec(ApiModel):
    """The trained model."""

    uri: Annotated[
        Uri,
        Field(
            description="A file, or a folder with a model and its external data: pvc://CLAIM/PATH in this namespace, s3://BUCKET/PATH, "
            "gs://BUCKET/PATH, az://CONTAINER/PATH, https://HOST/PATH (a file), hf://ORG/NAME@REVISION/PATH (a repository of the Hugging Face Hub), "
            "oci://REGISTRY/REPOSITORY:TAG or @sha256:DIGEST (an artifact of an OCI registry), mlflow://MODEL/VERSION or mlflow://MODEL@ALIAS, "
            "or file://PATH in `fettle optimize`."
        ),
    ]
    secret_name: SecretName = None
    format: Annotated[FormatName, Field(description="Auto detects the format from the content.")] = FormatName.AUTO
    sha256: Annotated[
        Sha256 | None,
        Field(
            description="Expected sha256 of the file, or of the canonical list of (path, sha256) of a folder, or of weights and the code of "
            "their factory. A mismatch ends the run."
        ),
    ] = None
    signature: Annotated[
        str | None,
        Field(
            max_length=253,
            description="Name of the signature to use, for a SavedModel with several. Default: serving_default, or the only one.",
        ),
    ] = None
    trusted: Annotated[
        bool,
        Field(
            description="Whether code in the source may run: pickles, types that skops does not know, Lambda layers of Keras, and the code of "
            "factory. It runs in a Job without a ServiceAccount token, and can read the Secrets of this source, data and store."
        ),
    ] = False
    factory: Annotated[
        FactorySpec | None,
        Field(
            description="Code that makes the PyTorch module, if uri holds only weights (a state dict in .pt, .pth or .safetensors). "
            "Needs trusted."
        ),
    ] = None
    inputs: Annotated[
        tuple[InputSpec, ...],
        Field(
            max_length=64,
            description="Inputs that the source does not describe completely.",
            json_schema_extra={"x-map-keys": ["name"]},
        ),
    ] = ()
    outputs: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...] | None,
        Field(
            max_length=64,
            description="Outputs of a frozen graph of TensorFlow: names of tensors, or of their nodes. Default: the only tensor that no other "
            "node consumes.",
            json_schema_extra={"x-set": True},
        ),
    ] = None

    @property
    def known_format(self) -> FormatName:
        """The format as far as the spec tells it: weights with a factory are TorchModule."""
        return self.format if self.factory is None else FormatName.TORCH_MODULE

    def addresses(self) -> dict[str, Address]:
        """Field of the spec -> address that it names, the model's first."""
        parts: dict[str, SourceSpec | FactorySpec | None] = {
            "spec.source.uri": self,
            "spec.source.factory.uri": self.factory,
        }
        return {field: Address(part.uri, part.secret_name) for field, part in parts.items() if part is not None}
