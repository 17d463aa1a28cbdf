"""Operators that change a value in place, replaced by those that make a new one.

A graph whose nodes only make values can be changed: what nothing uses any more can go, and one node can take the place of another.
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten


def without_changes_in_place(graph: fx.Graph) -> None:
    """Replace every operator whose effect only its own value and later nodes see. Others stay: those on weights, and on parts of a value."""
    seen: dict[fx.Node, int] = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        made = _functional(node)
        if made is None or not _apart(node, seen) or not _keeps_type(node, made):
            continue
        changed = node.args[0]
        changed.replace_all_uses_with(node, lambda user, after=seen[node]: seen[user] > after)
        node.target = made


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operator that makes a new value, where `node` has one that changes its first argument; None if it has none such."""
    operator = node.target
    if node.op != "call_function" or not isinstance(operator, torch._ops.OpOverload) or not operator._schema.is_mutable:
        return None
    name = operator._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    if packet is None or operator._overloadname not in packet.overloads():
        return None
    found: torch._ops.OpOverload = getattr(packet, operator._overloadname)
    return found


def _apart(node: fx.Node, seen: dict[fx.Node, int]) -> bool:
    """Whether no other value shares the memory of the one that `node` changes."""
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or changed.op == "get_attr" or _shares(changed):
        return False
    return not any(_shares(user) and user.users for user in changed.users if seen[user] < seen[node])


def _keeps_type(node: fx.Node, made: torch._ops.OpOverload) -> bool:
    """Whether `made` gives numbers of the type that `node` does: a value that is changed in place keeps its own."""
    if any("val" not in given.meta for given in (node, *node.all_input_nodes)):
        return False
    arguments, named = fx.map_arg((node.args, node.kwargs), lambda given: given.meta["val"])
    return bool(made(*arguments, **named).dtype == node.meta["val"].dtype)


def _shares(node: fx.Node) -> bool:
    """Whether its value may be a part of another's memory."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    return any(value.alias_info is not None for value in node.target._schema.returns)
