"""What a pickle would import, read off its instructions: none of them is executed."""

from __future__ import annotations

import pickletools
from pathlib import Path

HEADS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))  # what a pickle begins with


def imported(path: Path) -> list[str]:
    """What a bare pickle imports, as `module.name`, as far as its instructions can be read: arrays of joblib lie between them."""
    named: list[str] = []
    texts = ["", ""]
    with path.open("rb") as stream:
        try:
            for instruction, argument, _ in pickletools.genops(stream):
                if instruction.name == "GLOBAL":
                    named.append(str(argument).replace(" ", "."))
                elif instruction.name == "STACK_GLOBAL":
                    named.append(".".join(texts[-2:]))
                elif isinstance(argument, str):
                    texts = [*texts[-1:], argument]
        except ValueError:
            return named
    return named
