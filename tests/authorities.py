"""Whom clients trust in tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.unit.server.certificates import PEM, Authority


@pytest.fixture(scope="package", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody else vouches for a server on a loopback address. Each client would read those of the whole world, for 50 ms of a core."""
    folder = tmp_path_factory.mktemp("authorities")
    path = folder / "nobody.pem"
    path.write_bytes(Authority("nobody").certificate.public_bytes(PEM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        patch.setenv("SSL_CERT_DIR", str(folder))
        yield
