"""Code of a user's own: a Python function at an address, or in the spec itself. It runs only inside Jobs."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field

from fettle.api.base import ApiModel, Rule
from fettle.api.uris import SecretName, file_rules
from fettle.api.vocabulary import Uri

FunctionName = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)]


class FunctionSpec(ApiModel):
    """A Python function of one's own. What it takes and returns is said where it is asked for."""

    uri: Annotated[Uri | None, Field(description="A Python file that defines the function.")] = None
    secret_name: SecretName = None
    code: Annotated[
        str | None, Field(min_length=1, max_length=65_536, description="The Python code itself, in place of uri.")
    ] = None
    function: FunctionName

    def holding(self, code: str) -> Self:
        """The same function with the code that was read from its address."""
        return self.model_copy(update={"uri": None, "secret_name": None, "code": code})


def function_rules(field: str) -> tuple[Rule, ...]:
    """Rules of a function that `field` names."""
    return (
        Rule("has(self.uri) != has(self.code)", f"{field} needs either uri or code"),
        *file_rules(f"{field}.uri", "a file", optional=True),
    )
