"""`__all__` lists what may be used; a public name that is not in it is a mistake, and so is an undocumented one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import tokcarve

ROOT = Path(__file__).resolve().parents[1]


def _modules() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("cli", "exporters", "passes", "recipes"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield file.relative_to(ROOT), ast.parse(file.read_text())


def _listed(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def test_the_front_door_is_small() -> None:
    assert tokcarve.__all__ == ["__version__", "compress", "load"]
    assert set(tokcarve.__all__) <= set(dir(tokcarve))


def test_modules_list_what_they_define() -> None:
    for file, tree in _modules():
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name[0] != "_"}
        listed = _listed(tree)
        if file.name in ("__init__.py", "__main__.py") and not defined:
            continue
        assert listed is not None, f"{file} has no __all__"
        assert defined <= set(listed), f"{file} defines {defined - set(listed)} without listing it in __all__"


def test_what_is_listed_exists() -> None:
    for file, tree in _modules():
        names = {name.id for node in tree.body for name in ast.walk(node) if isinstance(name, ast.Name)}
        names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        names |= {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        assert set(_listed(tree) or ()) <= names, f"{file} lists {set(_listed(tree) or ()) - names}, which it has not"


def test_public_things_are_documented() -> None:
    for file, tree in _modules():
        assert ast.get_docstring(tree), f"{file} has no docstring"
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                assert ast.get_docstring(node), f"{file}: {node.name} has no docstring"
                methods = [n for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef)]
                for method in methods if isinstance(node, ast.ClassDef) else []:
                    documented = ast.get_docstring(method) or method.name[0] == "_" or _is_stub(method)
                    assert documented or method.name == "forward", f"{file}: {node.name}.{method.name} has no docstring"


def _is_stub(function: ast.FunctionDef) -> bool:
    return all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in function.body)
