"""Programs of torch.export, loaded only if they are data: PyTorch's loader (2.15) runs code out of the file that it is given.

It evaluates the expressions of dimensions (`sympify`), compiles the guards and the graph as Python source, resolves operators by attribute, imports
the modules that the trees of inputs name, falls back to plain unpickling, and loads machine code that lies beside the graph. So everything is
looked at before, with the reader that PyTorch uses itself, because two readers of zip archives may see different files.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.export.pt2_archive._package import load_pt2

from fettle.api.reasons import Reason
from fettle.api.text import clip
from fettle.errors import RuntimeFailure

MODELS, DATA, SAMPLES, COMPILED = "models/", ("data/weights/", "data/constants/"), "data/sample_inputs/", "aotinductor"
OLD_PROGRAM, OLD_DATA = "serialized_exported_program.json", "serialized_"  # before PyTorch 2.8
_TREES = frozenset({"in_spec", "out_spec", "context"})  # JSON in a string
# What a person may read, and nothing evaluates.
_NOTES = frozenset({"stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"})
# Text that cannot end a string or call something, wherever it is put into source code.
_TEXT = re.compile(r"""[^'"`\\(){}\[\]=;\x00-\x1f\x7f-\xa0]*""")
_NAME = re.compile(r"\w*", re.ASCII)
_EXPRESSION = re.compile(r"""[\w\s.,+\-*/%<>=!&|~^'()\[\]]*""", re.ASCII)
_NUMBER = re.compile(r"[-+.\w]+", re.ASCII)
_HIGHER = (
    "associative_scan|auto_functionalized|auto_functionalized_v2|cond|flex_attention|hints_wrapper|invoke_subgraph|map_impl|out_dtype|"
    "scan|strict_mode|tag_activation_checkpoint|while_loop|wrap|wrap_activation_checkpoint|wrap_with_autocast|wrap_with_set_grad_enabled"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized|quantized_decomposed|torchao|torchaudio|torchvision)\.(?!from_file\b)\w+(\.\w+)?"
    rf"|torch\.ops\.higher_order\.({_HIGHER})"
    r"|_operator\.(?!attrgetter|methodcaller|call)\w+|math\.\w+|torch\.(_?sym_\w+)|torch\._functorch\.predispatch\.(_\w+|lazy_load_decompositions)",
    re.ASCII,
)
_SYMPY = re.compile(
    "Abs|Add|And|BooleanFalse|BooleanTrue|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|ExprCondPair|Float|FloatPow|FloatTrueDiv|"
    "FloorDiv|FloorToInt|Ge|GreaterThan|Gt|Half|Identity|IntTrueDiv|Integer|IsNonOverlappingAndDenseIndicator|LShift|Le|LessThan|"
    "Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|One|Or|Piecewise|Pow|PowByNatural|PythonMod|RShift|Rational|RoundDecimal|"
    "RoundToInt|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToFloat|TruncToInt|Tuple|Unequality|Where|Xor|Zero|ceiling|"
    r"cos|cosh|exp|floor|log|sin|sinh|sqrt|tan|tanh|OpaqueUnaryFn_\w+|BitwiseFn_\w+",
    re.ASCII,
)
_GUARDS = re.compile(
    r"IsNonOverlappingAndDenseIndicator|cast_symbool_to_symint_guardless|abs|bool|float|int|len|max|min|round|sum"
)
_METHODS = frozenset({"dim", "item", "size", "storage_offset", "stride"})
_MODULES = re.compile(r"math\.[a-z]\w*|torch\._?sym_\w+", re.ASCII)
_PLAIN: tuple[type[ast.AST], ...] = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.IfExp, ast.Tuple, ast.Load, ast.keyword),
    *(ast.operator, ast.unaryop, ast.cmpop, ast.boolop),
)


def load(path: Path) -> Any:
    """The torch.export.ExportedProgram in the file at `path`.

    Raises RuntimeFailure (UnsafeCode) for a program that would run code; whatever PyTorch raises for a damaged one.
    """
    try:
        reader = torch._C.PyTorchFileReader(str(path))
    except RuntimeError as error:  # of a version before 2.8, whose archives PyTorch reads in another way
        if "maximum supported version" in str(error):
            raise
        _check_old(path)
        return torch.export.load(path)
    _check(path.name, reader)
    return load_pt2(str(path)).exported_programs["model"]


def _check(name: str, reader: Any) -> None:
    records = reader.get_all_records()
    for record in records:
        if COMPILED in PurePosixPath(record).parts:
            raise _unsafe(name, record, "machine code")
        if record.startswith(MODELS):
            _check_graph(name, reader.get_record(record))
        elif record.startswith(SAMPLES) or (record.startswith(DATA) and record.endswith(".pt")):
            _check_pickle(name, record, reader.get_record(record))
        elif record.startswith(DATA) and record.endswith("_config.json"):
            _check_payloads(name, json.loads(reader.get_record(record)))


def _check_old(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for record in archive.namelist():
            if record == OLD_PROGRAM:
                _check_graph(path.name, archive.read(record))
            elif record.startswith(OLD_DATA):
                _check_pickle(path.name, record, archive.read(record))


def _check_payloads(name: str, found: Any) -> None:
    """Weights and constants are bytes with a shape; everything else is unpickled."""
    for key, payload in found["config"].items():
        if payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_")):
            raise _unsafe(name, key, f"a pickle ({payload['path_name']})")


def _check_pickle(name: str, record: str, content: bytes) -> None:
    """PyTorch tries the restricted unpickler first, as this does, and then the one that runs code."""
    if not content:
        return
    try:
        loaded = torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unsafe(name, record, f"a pickle of more than tensors ({error})") from error
    for text in _keys(loaded):  # they come back in the source of guards
        if not _TEXT.fullmatch(text):
            raise _unsafe(name, record, repr(text))


def _keys(loaded: Any) -> Iterator[str]:
    waiting = [loaded]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            waiting += [*inner.keys(), *inner.values()]
        elif isinstance(inner, (list, tuple, set)):
            waiting += inner
        elif isinstance(inner, str):
            yield inner


def _check_graph(name: str, content: bytes) -> None:
    """Every string of a program, by what PyTorch does with it. Only those among the arguments of nodes are quoted wherever they are written."""
    waiting: list[tuple[str, Any, bool]] = [("", json.loads(content), False)]
    while waiting:
        key, inner, quoted = waiting.pop()
        if isinstance(inner, dict):
            if "__enum__" in inner or inner.get("default_factory_module", "builtins") != "builtins":
                raise _unsafe(name, key, "a module that would be imported")
            waiting += [("", own, False) for own in inner]
            waiting += [(field, value, quoted or field == "nodes") for field, value in inner.items()]
        elif isinstance(inner, list):
            waiting += [(key, value, quoted) for value in inner]
        elif not isinstance(inner, str) or (quoted and key in ("as_string", "as_strings")):
            continue
        elif key in _TREES and inner[:1] in ("[", "{"):
            waiting.append((key, json.loads(inner), False))
        elif not _RULES.get(key, _is_text)(inner):
            raise _unsafe(name, key, repr(inner))


def _is_text(text: str) -> bool:
    return _TEXT.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    return _OPERATOR.fullmatch(text) is not None and ".__" not in text


def _is_dimension(text: str) -> bool:
    """An expression of sympy as `srepr` writes it, or as a person would."""
    return _is_expression(text, lambda node: isinstance(node, ast.Call) and _is_sympy(node))


def _is_guard(text: str) -> bool:
    """A condition on the inputs `L`, whose names are the only strings in it."""
    return _is_expression(text, _is_guarded)


def _is_expression(text: str, allowed: Callable[[ast.AST], bool]) -> bool:
    """Whether all of `text` is numbers, names and arithmetic, and what else is `allowed`."""
    if not _EXPRESSION.fullmatch(text) or "\n" in text or "\r" in text:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    # Strings are judged with what takes them.
    named = {inner for node in nodes if isinstance(node, (ast.Call, ast.Subscript)) for inner in _strings(node)}
    return all(
        isinstance(node, _PLAIN)
        or (isinstance(node, ast.Name) and "__" not in node.id)
        or (isinstance(node, ast.Constant) and (not isinstance(node.value, (str, bytes)) or node in named))
        or allowed(node)
        for node in nodes
    )


def _strings(node: ast.Call | ast.Subscript) -> list[ast.Constant]:
    """The string that a call of Symbol or Float, or a subscript, may hold."""
    found = node.slice if isinstance(node, ast.Subscript) else node.args[0] if node.args else None
    if not isinstance(found, ast.Constant) or not isinstance(found.value, str):
        return []
    if isinstance(node, ast.Subscript):
        rule = _TEXT
    elif isinstance(node.func, ast.Name) and node.func.id in ("Symbol", "Float"):
        rule = _NAME if node.func.id == "Symbol" else _NUMBER
    else:
        return []
    return [found] if rule.fullmatch(found.value) else []


def _is_sympy(node: ast.Call) -> bool:
    named = isinstance(node.func, ast.Name) and _SYMPY.fullmatch(node.func.id)
    return bool(named) and all(word.arg and isinstance(word.value, ast.Constant) for word in node.keywords)


def _is_guarded(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        named = isinstance(node.func, ast.Name) and _GUARDS.fullmatch(node.func.id) is not None
        return not node.keywords and (named or isinstance(node.func, ast.Attribute))
    if isinstance(node, ast.Attribute):
        return node.attr in _METHODS or _MODULES.fullmatch(ast.unparse(node)) is not None
    return isinstance(node, ast.Subscript)


def _unsafe(name: str, field: str, found: str) -> RuntimeFailure:
    message = (
        f"{name} is a program of torch.export with {clip(found, 200)} in {field or 'its graph'}: PyTorch would run it as code when it loads "
        "the file, so it was not loaded; export the model again, with operators and tensors of PyTorch's alone"
    )
    return RuntimeFailure(message, reason=Reason.UNSAFE_CODE)


_RULES: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(_NOTES, lambda _: True),
    **dict.fromkeys(("name", "as_name"), _is_name),
    **dict.fromkeys(("target", "as_operator"), _is_operator),
    "expr_str": _is_dimension,
    "guards_code": _is_guard,
}
