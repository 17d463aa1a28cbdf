"""What a pickle would import, read off its instructions: none of them is executed."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADS = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))  # what a pickle begins with
_NAMED = ("GLOBAL", "INST")  # instructions that hold what they import themselves
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")


def imported(path: Path) -> list[str]:
    """What a bare pickle imports, as `module.name`, as far as its instructions can be read: arrays of joblib lie between them."""
    named: list[str] = []
    with path.open("rb") as stream:
        try:
            named.extend(_imports(pickletools.genops(stream)))
        except (ValueError, IndexError, KeyError):  # no instruction, or one without what it needs
            return named
    return named


def _imports(instructions: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Iterator[str]:
    """Follow the stack and the memo as `pickletools.dis` does, because a name's two parts may have been pushed anywhere before."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for instruction, argument, _ in instructions:
        if instruction.name in _NAMED:
            yield str(argument).replace(" ", ".")
        elif instruction.name == "STACK_GLOBAL":
            yield f"{stack[-2]}.{stack[-1]}"
        if instruction.name in _PUTS:
            memo[len(memo) if argument is None else argument] = stack[-1]
            continue
        _move(stack, instruction, [memo[argument]] if instruction.name in _GETS else [argument])


def _move(stack: list[Any], instruction: pickletools.OpcodeInfo, pushed: list[Any]) -> None:
    """Pop what the instruction takes. Push `pushed` where it pushes one object: text is what counts, anything else only has to be there."""
    before, after, mark = instruction.stack_before, instruction.stack_after, pickletools.markobject
    takes = len(before)
    if mark in before or (instruction.name == "POP" and stack[-1] is mark):
        while stack.pop() is not mark:
            pass
        takes = before.index(mark) if mark in before else 0
    if takes:
        del stack[-takes:]
    stack.extend(pushed if len(after) == 1 and after[0] is not mark else after)
