"""No message that people may read holds a secret."""

from __future__ import annotations

import pytest

from fettle.api.conditions import with_condition
from fettle.api.reasons import Reason
from fettle.api.secrets import without_secrets
from fettle.cluster.events import render
from fettle.cluster.kinds import OPTIMIZED_MODEL
from fettle.controller.context import utc_now
from fettle.optimizer.stage import failed
from fettle.plan.events import EventDraft

SIGNED = "https://models.example/digits.onnx?X-Amz-Credential=AKIA123&X-Amz-Signature=0badc0de"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("pvc://models/digits.onnx does not exist", "pvc://models/digits.onnx does not exist"),
        ("https://me:hunter22@host/m.onnx is gone", "https://***@host/m.onnx is gone"),
        (f"{SIGNED}: 403", "https://models.example/digits.onnx?***: 403"),
        (f"'{SIGNED}' (asked twice)", "'https://models.example/digits.onnx?***' (asked twice)"),
        ("is it there? s3://bucket/key", "is it there? s3://bucket/key"),
        ("s3://a@b@c/key", "s3://***@b@c/key"),
    ],
)
def test_addresses_lose_user_password_and_query(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_values_of_secret_variables_become_stars() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "HF_TOKEN": "hf_abcdef", "HOME": "/tmp/home", "TOKEN": "a"}
    text = "wJalrXUtnFEMI was refused for hf_abcdef in /tmp/home by a server"
    assert without_secrets(text, environment) == "*** was refused for *** in /tmp/home by a server"


def test_conditions_events_and_termination_messages_are_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    (condition,) = with_condition((), "Ready", False, Reason.SOURCE_NOT_FOUND, SIGNED, generation=1, now="now")
    about = {"metadata": {"namespace": "n", "name": "digits", "uid": "u"}}
    event = render(OPTIMIZED_MODEL, about, EventDraft("Warning", Reason.SOURCE_NOT_FOUND, SIGNED), utc_now())
    termination = failed(Reason.SOURCE_NOT_FOUND, f"{SIGNED} with wJalrXUtnFEMI").termination
    for message in (condition.message, event["message"], termination.message):
        assert "digits.onnx?***" in message
        assert "0badc0de" not in message and "wJalr" not in message
