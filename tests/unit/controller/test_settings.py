"""Settings from the environment."""

from __future__ import annotations

import pytest

from fettle.settings import Settings


def test_words_are_separated_by_commas_and_maps_are_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FETTLE_WATCH_NAMESPACES", "team-a, team-b")
    monkeypatch.setenv("FETTLE_STORE_ACCESS_MODES", "ReadWriteMany")
    monkeypatch.setenv("FETTLE_STORE_STORAGE_CLASS", "")
    monkeypatch.setenv("FETTLE_JOB_RESOURCES", '{"requests": {"cpu": "1"}}')
    settings = Settings()
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.store_access_modes == ("ReadWriteMany",)
    assert settings.store_storage_class is None
    assert settings.job_resources.requests == {"cpu": "1"}


def test_nothing_has_to_be_set() -> None:
    settings = Settings()
    assert settings.watch_namespaces == () and settings.identity
    assert settings.default_store_claim == "fettle-store"


def test_a_default_store_that_is_no_claim_is_not_created() -> None:
    assert Settings(store_uri="s3://bucket/fettle").default_store_claim is None


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("watched", "ignored", "served"),
    [
        ((), (), True),
        (("team",), (), True),
        (("other",), (), False),
        ((), ("te*",), False),
        (("team",), ("team",), False),
    ],
)
def test_which_namespaces_are_served(watched: tuple[str, ...], ignored: tuple[str, ...], served: bool) -> None:
    assert Settings(watch_namespaces=watched, ignore_namespaces=ignored).serves("team") is served
