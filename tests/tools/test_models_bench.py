"""What the bench of other people's models keeps and sums up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench import models


def row(model: str, cpu: str, value: float | None) -> dict[str, Any]:
    """A row of the table: what `model` gained on `cpu`, or that it was not published."""
    return {"model": model, "cpu": cpu, "claim": {"value": value}} if value else {"model": model, "cpu": cpu}


def test_the_speed_up_is_summed_up_over_the_models_of_other_people_that_were_published() -> None:
    rows = [
        row("magika", "a", 2),
        row("captcha-old", "a", 8),
        row("nudenet", "a", 4),
        row("made-tokens", "a", 100),
        row("silero-vad", "a", None),
    ]
    assert models.summary(rows) == "3 models from wheels: speed-up 4.00 (geometric mean), 4.00 (median)"
    assert models.summary(rows[3:]) == "no model from a wheel was published"


def test_a_run_replaces_the_rows_of_the_same_models_on_the_same_class_of_cpu_alone(tmp_path: Path) -> None:
    kept = tmp_path / "results" / "models.json"
    models.keep([row("magika", "a", 2), row("ocr-lines", "a", 3)], kept)
    models.keep([row("magika", "b", 9)], kept)
    models.keep([row("magika", "a", 4)], kept)
    assert [(each["cpu"], each["model"], each["claim"]["value"]) for each in json.loads(kept.read_text())] == [
        ("a", "magika", 4),
        ("a", "ocr-lines", 3),
        ("b", "magika", 9),
    ]
