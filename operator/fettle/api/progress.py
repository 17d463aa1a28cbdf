"""How far a training has come: what a Job writes to its log after each epoch, and what status shows of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, FiniteFloat, ValidationError

from fettle.api.base import ApiModel

PROGRESS = "FETTLE-PROGRESS "
MOST_EPOCHS = 1_000_000  # and figures are finite: whoever writes to the log, the API server takes what is read there


class TrainingStatus(ApiModel):
    """How far a training has come."""

    epoch: Annotated[int, Field(ge=0, le=MOST_EPOCHS, description="Number of finished epochs.")]
    epochs: Annotated[int, Field(ge=0, le=MOST_EPOCHS, description="Maximum number of epochs.")]
    loss: Annotated[FiniteFloat | None, Field(description="Mean loss on the training items in the last epoch.")] = None
    validation_loss: Annotated[FiniteFloat, Field(description="Mean loss on the validation set after the last epoch.")]
    validation_score: Annotated[
        FiniteFloat,
        Field(
            description="Score on the validation set after the last epoch: the share of right decisions or characters, or of the variance that is "
            "explained; the loss, negated, for train.loss Custom."
        ),
    ]
    best_epoch: Annotated[
        int,
        Field(ge=0, le=MOST_EPOCHS, description="Epoch with the best score so far. 0 is the model before training."),
    ]
    learning_rate: Annotated[FiniteFloat | None, Field(description="Learning rate at the start of the last epoch.")] = (
        None
    )
    seconds: Annotated[FiniteFloat, Field(description="Training time so far, in seconds.")]

    @property
    def words(self) -> str:
        """'epoch 3 of 20: loss 0.412, validation score 0.931'."""
        loss = f"loss {self.loss:.3g}, " if self.loss is not None else ""
        return f"epoch {self.epoch} of {self.epochs}: {loss}validation score {self.validation_score:.3f}"


def progress_line(progress: TrainingStatus) -> str:
    """The line of a log that carries it."""
    return PROGRESS + progress.canonical().decode()


def progress_in(line: str) -> TrainingStatus | None:
    """What a line of a log carries, whatever stands in front of it; None where it carries nothing."""
    payload = line.partition(PROGRESS)[2]
    if not payload:
        return None
    try:
        return TrainingStatus.model_validate_json(payload)
    except ValidationError:
        return None
