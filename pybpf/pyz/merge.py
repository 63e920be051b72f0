# SPDX-License-Identifier: BSD-2-Clause
"""The executor as a build product: the rooms that run a Plan, read, made lean and compiled.

Which modules go in is found by following the imports of ``pybpf.plan.main``; nothing is listed
by hand. Their sources lose what only readers and type checkers need (docstrings, annotations,
``if TYPE_CHECKING``, asserts), and numbers of ``pybpf.sys.abi`` become constants, so that its
names need not travel. The rooms stay the source of truth: nothing here knows what they do.
"""

from __future__ import annotations

import ast
import importlib
import marshal
from copy import deepcopy
from importlib.util import find_spec
from types import CodeType

from pybpf.plan import ops
from pybpf.pyz.canonical import canonical

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["MAIN", "Merged", "merge"]

MAIN = "pybpf.plan.main"
LOADER = "pybpf.pyz.loader"
PACKAGES = ("pybpf", "pybpf.kernel", "pybpf.plan", "pybpf.sys")
ROOMS = ("pybpf.errors", "pybpf.sys", "pybpf.kernel", "pybpf.plan")
_ABI = "pybpf.sys.abi"
#: What only explains a failure, or is for few programs: it travels as source, not as byte code,
#: which would make every bundle larger, and slower to read.
RARE = (
    "pybpf.kernel.arena", "pybpf.kernel.explain_map", "pybpf.kernel.features",
    "pybpf.kernel.kallsyms", "pybpf.kernel.symbols", "pybpf.kernel.verifier_log", "pybpf.sys.abi",
    "pybpf.sys.abi_names", "pybpf.sys.diagnose", "pybpf.sys.numbers_aarch64",
    "pybpf.sys.numbers_x86_64", "pybpf.kernel.map", "pybpf.kernel.program", "pybpf.kernel.object",
    "pybpf.kernel.link", "pybpf.kernel.layout", "pybpf.plan.variables", "pybpf.plan.freeze",
    "pybpf.plan.live_more", "pybpf.plan.check", "pybpf.plan.older", "pybpf.plan.premises",
    "pybpf.kernel.btf",
)  # fmt: skip
#: What is set apart from a module that is imported at once is named after it.
REST = ":rest"
#: Modules of C behind modules of Python that only wrap them.
_CORES = {"struct": "_struct"}


class Merged:
    """The executor's modules: ``first`` are imported at once, in order, ``later`` on demand.

    Both are (name, whether it is a package, tree), ``later`` without packages; ``first`` begins
    with the loader.
    """

    def __init__(
        self,
        first: tuple[tuple[str, bool, ast.Module], ...],
        later: tuple[tuple[str, ast.Module], ...],
    ) -> None:
        self.first = first
        self.later = later

    def sources(self) -> tuple[bytes, bytes]:
        """(first, later) marshalled as sources, for any Python from 3.11."""
        first = tuple((name, package, _source(tree)) for name, package, tree in self.first)
        later = {name: _source(tree) for name, tree in self.later}
        # Version 2 is what every Python reads.
        return marshal.dumps(first, 2), marshal.dumps(later, 2)

    def code(self) -> tuple[bytes, bytes]:
        """(first, later without RARE) marshalled as byte code of the Python that runs this."""
        first = tuple((name, package, _compile(name, tree)) for name, package, tree in self.first)
        later = {
            name: _compile(name, tree)
            for name, tree in self.later
            if name not in RARE and not name.endswith(REST)
        }
        return canonical(first), canonical(later)


def _source(tree: ast.Module) -> str:
    """The tree as source that every Python from 3.11 reads."""
    return ast.unparse(ast.fix_missing_locations(_Formats().visit(deepcopy(tree))))


class _Formats(ast.NodeTransformer):
    """f-strings become calls of str.format, which mean the same.

    From 3.12 on (PEP 701) ast.unparse writes f-strings with quotes inside quotes, which 3.11
    takes for the end of the string.
    """

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        values: list[ast.expr] = []
        text = ast.Constant(self._template(node, values))
        return ast.Call(ast.Attribute(text, "format", ast.Load()), values, [])

    def _template(self, node: ast.JoinedStr, values: list[ast.expr]) -> str:
        """What str.format takes; the values of its fields are added to ``values`` in order."""
        out = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                values.append(self.visit(part.value))
                out += "{" + (f"!{part.conversion:c}" if part.conversion > 0 else "")
                if isinstance(part.format_spec, ast.JoinedStr):
                    out += ":" + self._template(part.format_spec, values)
                out += "}"
            elif isinstance(part, ast.Constant):
                out += str(part.value).replace("{", "{{").replace("}", "}}")
        return out


def _compile(name: str, tree: ast.Module) -> CodeType:
    path = name.replace(".", "/") + ".py"
    return _without_lines(compile(tree, path, "exec", dont_inherit=True, optimize=2))


def _without_lines(code: CodeType) -> CodeType:
    """The code without its table of lines, a fifth of it: a traceback names files and functions."""
    constants = tuple(
        _without_lines(one) if isinstance(one, CodeType) else one for one in code.co_consts
    )
    return code.replace(co_linetable=b"", co_consts=constants)


def merge(plan: ops.Plan | None = None) -> Merged:
    """Read, follow and slim the executor's modules.

    plan: what it is to run; what its operations need beside the others is imported at once.
    """
    trees: dict[str, ast.Module] = {}
    first: list[str] = []
    for name in (*(_needed(plan) if plan is not None else ()), MAIN):
        _follow(name, trees, first)
    later: list[str] = []
    waiting = list(first)
    while waiting:
        for name in _imports(trees[waiting.pop(0)], nested=True):
            if name not in trees:
                new: list[str] = []
                _follow(name, trees, new)
                later += new
                waiting += new
    lean = {name: _lean(tree) for name, tree in trees.items()}
    if not any(_ABI in _imports(tree, nested=True) for tree in lean.values()):
        del lean[_ABI]  # all of its numbers became constants
    rests = _set_apart({name: lean[name] for name in first if name in lean})
    return Merged(
        (
            (LOADER, False, _lean(_parse(LOADER))),
            *((name, True, ast.parse("")) for name in PACKAGES),
            *((name, False, lean[name]) for name in first if name in lean),
        ),
        tuple((name, lean[name]) for name in sorted(later) if name in lean) + rests,
    )


def _needed(plan: ops.Plan) -> list[str]:
    """Modules that the executor imports for some operations only, and does for this Plan's."""
    found: dict[str, None] = {}
    waiting: list[ops.Op] = list(plan.ops)
    while waiting:
        op = waiting.pop(0)
        if isinstance(op, ops.Lookup):
            found.update(dict.fromkeys(("pybpf.kernel.btf_lookup", "pybpf.sys.bpf_more")))
        elif isinstance(op, ops.KconfigFill):
            found["pybpf.plan.kconfig"] = None
        elif isinstance(op, ops.ProgLoad) and op.patches:
            found["pybpf.plan.patch"] = None
        elif isinstance(op, ops.Choose):
            waiting += [one for _, branch in op.alternatives for one in branch]
        elif isinstance(op, ops.When):
            waiting += [*op.then, *op.otherwise]
    return list(found)


def _set_apart(trees: dict[str, ast.Module]) -> tuple[tuple[str, ast.Module], ...]:
    """Takes functions, classes and tables away from modules that are imported at once where no
    code that is left says their names, and gives them as (module + REST, tree).

    The loader runs such a rest in its module's namespace when a name is missing there, so nothing
    can go wrong with a name that is said in another way: it comes later.
    """
    waiting = [(name, node) for name, tree in trees.items() for node in tree.body if _apart(node)]
    said = {"main"}
    for tree in trees.values():
        for node in tree.body:
            if not _apart(node):
                said |= _said(node)
    found = True
    while found:
        found = False
        for place in list(waiting):
            if _name_of(place[1]) in said:
                said |= _said(place[1])
                waiting.remove(place)
                found = True
    rests: dict[str, list[ast.stmt]] = {}
    for name, node in waiting:
        rests.setdefault(name, []).append(node)
        trees[name].body.remove(node)
    return tuple(
        (name + REST, ast.Module(body=body, type_ignores=[])) for name, body in rests.items()
    )


def _apart(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module only gives something a name."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return not node.decorator_list and not node.name.startswith("__")
    return isinstance(node, ast.Assign) and bool(_name_of(node)) and isinstance(
        node.value, (ast.Constant, ast.Dict)
    )  # fmt: skip


def _name_of(node: ast.stmt) -> str:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        return target.id if isinstance(target, ast.Name) else ""
    return ""


def _said(node: ast.stmt) -> set[str]:
    """Every name in a statement: of variables, of attributes, of what it imports."""
    found: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.add(part.id)
        elif isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.alias):
            found.add(part.name)
    return found


def _parse(name: str) -> ast.Module:
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no module {name}")
    source = spec.loader.get_source(name)  # type: ignore[attr-defined]
    if source is None:
        raise ImportError(f"the source of {name} is needed to make a bundle, and is not there")
    tree: ast.Module = ast.parse(source)
    return tree


def _inside(name: str) -> bool:
    return any(name == room or name.startswith(room + ".") for room in ROOMS)


def _follow(name: str, trees: dict[str, ast.Module], order: list[str]) -> None:
    """Add ``name`` and what it imports at its top to ``order``, what is imported first first."""
    if name in trees:
        return
    trees[name] = _parse(name)
    for other in _imports(trees[name], nested=False):
        _follow(other, trees, order)
    order.append(name)


def _imports(tree: ast.AST, *, nested: bool) -> list[str]:
    """Modules of the rooms that a module imports: at its top, or anywhere."""
    found: list[str] = []
    for node in _statements(tree, nested):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if _inside(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if _inside(whole) and _is_module(whole):
                    found.append(whole)
                elif _inside(node.module):
                    found.append(node.module)
                    if node.module in PACKAGES:
                        raise ImportError(f"the executor uses {whole}: packages go in empty")
    return found


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module and no package
        return False


def _statements(node: ast.AST, nested: bool) -> list[ast.stmt]:
    """Statements below ``node``, without those under TYPE_CHECKING; functions only if asked."""
    found: list[ast.stmt] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _only_for_types(child.test):
            continue
        if isinstance(child, ast.stmt):
            found.append(child)
        if nested or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found += _statements(child, nested)
    return found


def _only_for_types(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


# --- making lean ------------------------------------------------------------------------------


def _lean(tree: Any) -> Any:
    """The module without what only readers and type checkers need."""
    tree = _Lean(_aliases(tree)).visit(tree)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    done: ast.Module = ast.fix_missing_locations(_Unused(used).visit(tree))
    return done


def _aliases(tree: ast.Module) -> dict[str, Any]:
    """Names under which a module knows pybpf.sys.abi."""
    module = importlib.import_module(_ABI)
    return {
        alias.asname or alias.name: module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "pybpf.sys"
        for alias in node.names
        if alias.name == "abi"
    }


class _Lean(ast.NodeTransformer):
    def __init__(self, constants: dict[str, Any]) -> None:
        self._constants = constants

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        if not node.body:
            node.body = [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self._body(node)

    visit_ClassDef = visit_With = visit_For = visit_While = _body

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_If(self, node: ast.If) -> Any:
        if _only_for_types(node.test):
            return [self.visit(one) for one in node.orelse]
        return self._body(node)

    def visit_Expr(self, node: ast.Expr) -> Any:
        if isinstance(node.value, ast.Constant):
            return None  # a docstring
        return self.generic_visit(node)

    def visit_Assert(self, _node: ast.Assert) -> None:
        return None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is None:
            return None
        new = ast.Assign(targets=[node.target], value=node.value)
        return self.generic_visit(ast.copy_location(new, node))

    def visit_Assign(self, node: ast.Assign) -> Any:
        names = {target.id for target in node.targets if isinstance(target, ast.Name)}
        if names & {"TYPE_CHECKING", "__all__"}:
            return None
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        return None if node.module == "__future__" else node

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name in _CORES:
                alias.name, alias.asname = _CORES[alias.name], alias.asname or alias.name
        return node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id in self._constants:
            value = getattr(self._constants[node.value.id], node.attr)
            if type(value) in (int, str):
                return ast.copy_location(ast.Constant(value), node)
        return self.generic_visit(node)


class _Unused(ast.NodeTransformer):
    """Takes imports of pybpf.sys.abi away that nothing uses any more."""

    def __init__(self, used: set[str]) -> None:
        self._used = used

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node.module == "pybpf.sys":
            node.names = [
                alias
                for alias in node.names
                if alias.name != "abi" or (alias.asname or alias.name) in self._used
            ]
        return node if node.names else None
