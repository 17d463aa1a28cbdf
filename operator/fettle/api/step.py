"""What every step of a recipe says of itself."""

from __future__ import annotations

from fettle.api.base import ApiModel
from fettle.api.vocabulary import StepKind


class StepParameters(ApiModel):
    """What a recipe says of one step: a subclass for each key of RecipeStep."""

    @property
    def kind(self) -> StepKind:
        """Its kind in the catalog, which knows what it needs in each family of runtimes."""
        raise NotImplementedError

    @property
    def quantizes(self) -> bool:
        """Whether it writes int8, which is not done twice."""
        return False

    @property
    def dynamic(self) -> bool:
        """Whether ranges are taken while the model runs, over all items of a run."""
        return False

    @property
    def words(self) -> str:
        """The step for a person: 'quantize Static, Default'."""
        raise NotImplementedError
