"""Tags by content, and the package index inside a build."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools.cluster import images, package_index
from tools.cluster.errors import ClusterError

DOCKERFILE = """FROM base AS packages
COPY requirements/a.txt /tmp/
COPY --chown=1:1 LICENSE \\
     pyproject.toml /src/
FROM base
COPY --from=packages /opt /opt
COPY operator/fettle /src/fettle
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "requirements/a.txt",
        "LICENSE",
        "pyproject.toml",
        "operator/fettle/x.py",
        "docker/Dockerfile.a",
        "other",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (tmp_path / "docker/Dockerfile.a").write_text(DOCKERFILE)
    return tmp_path


def test_what_an_image_copies_is_read_from_its_dockerfile() -> None:
    assert images.copied(DOCKERFILE) == ["requirements/a.txt", "LICENSE", "pyproject.toml", "operator/fettle"]


@pytest.mark.parametrize(
    ("changed", "another"),
    [
        ("requirements/a.txt", True),
        ("operator/fettle/x.py", True),
        ("operator/fettle/new.py", True),
        ("docker/Dockerfile.a", True),
        ("other", False),
        ("operator/fettle/__pycache__/x.pyc", False),
    ],
)
def test_a_tag_changes_with_an_input_and_with_nothing_else(tree: Path, changed: str, another: bool) -> None:
    dockerfile = tree / "docker/Dockerfile.a"
    before = images.content_tag(tree, dockerfile)
    (tree / changed).parent.mkdir(exist_ok=True)
    with (tree / changed).open("a") as file:
        file.write("\n# more\n")
    assert (images.content_tag(tree, dockerfile) != before) is another


def test_a_tag_changes_with_a_build_argument_that_the_dockerfile_declares(tree: Path) -> None:
    dockerfile, asked = tree / "docker/Dockerfile.a", {"TENSORRT": "1"}
    assert images.content_tag(tree, dockerfile, asked) == images.content_tag(tree, dockerfile)
    dockerfile.write_text(f"{DOCKERFILE}ARG TENSORRT=0\n")
    assert images.content_tag(tree, dockerfile, asked) != images.content_tag(tree, dockerfile)


def test_a_missing_input_is_named(tree: Path) -> None:
    (tree / "LICENSE").unlink()
    with pytest.raises(ClusterError, match="LICENSE"):
        images.content_tag(tree, tree / "docker/Dockerfile.a")


def test_a_reference_is_split_at_the_right_places() -> None:
    assert images.split("localhost:5001/team/fettle-server:ab") == ("localhost:5001", "team/fettle-server", "ab")


@pytest.mark.parametrize(
    ("host", "plain"),
    [
        ("localhost:5001", True),
        ("127.0.0.1:5000", True),
        ("172.31.255.2:5000", True),
        ("172.31.254.2:5000", True),
        ("ghcr.io", False),
    ],
)
def test_only_registries_at_hand_speak_plain_http(host: str, plain: bool) -> None:
    assert images.is_plain(host) is plain


LISTING = """global.index-url='https://index.example/simple'
global.extra-index-url='https://a.example/ https://b.example/'
install.no-compile='true'
:env:.timeout='3'
"""


def test_pips_environment_wins_over_its_files() -> None:
    settings = package_index.pip_settings(LISTING, {"PIP_INDEX_URL": "https://other.example/simple"})
    assert settings == {
        "index-url": "https://other.example/simple",
        "extra-index-url": "https://a.example/ https://b.example/",
    }


def test_several_addresses_are_several_lines_in_pip_conf() -> None:
    text = package_index.pip_conf({"index-url": "https://i/", "extra-index-url": "https://a/ https://b/"})
    assert text == "[global]\nindex-url = https://i/\nextra-index-url =\n    https://a/\n    https://b/\n"


def test_uv_gets_what_pip_has_and_its_own_settings_first() -> None:
    settings = {"index-url": "https://i/", "trusted-host": "i"}
    assert package_index.uv_toml(settings, {}) == 'index-url = "https://i/"\nallow-insecure-host = ["i"]\n'
    assert package_index.uv_toml(settings, {"UV_DEFAULT_INDEX": "mine=https://u/"}).startswith(
        'index-url = "https://u/"'
    )
    assert package_index.uv_toml({}, {}) == ""
