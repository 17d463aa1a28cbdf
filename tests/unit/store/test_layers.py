"""Archives of a registry are looked into with bounded memory and time, whoever made them."""

from __future__ import annotations

import io
import tarfile

import pytest

from fettle.store import layers


def archive(*entries: tarfile.TarInfo) -> io.BytesIO:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as made:
        for entry in entries:
            made.addfile(entry)
    return content


def entry(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    told = tarfile.TarInfo(name)
    told.type = kind
    return told


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE], ids=["one file again and again", "folders"])
def test_every_entry_counts(monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    monkeypatch.setattr(layers, "MOST_FILES", 3)
    assert len(layers.members(archive(*[entry("a", kind)] * 3))) <= 1
    with pytest.raises(layers.DamagedLayer, match="more than 3 entries"):
        layers.members(archive(*[entry("a", kind)] * 4))


def test_an_entry_that_leads_back_to_where_it_was_read_from_is_damaged() -> None:
    content = bytearray(archive(entry("a"), entry("b")).getvalue())
    content[512 + 124 : 512 + 136] = (-512).to_bytes(12, "big", signed=True)  # the size of b, in base 256
    header = bytes(content[512:1024])
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    content[512 + 148 : 512 + 156] = b"%06o\0 " % total
    with pytest.raises(layers.DamagedLayer):
        layers.members(io.BytesIO(bytes(content)))
