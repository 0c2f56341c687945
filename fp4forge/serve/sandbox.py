"""Runs a model's one-line prime function against known primes, apart from everything else."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys

PRIMES = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47}
SECONDS = 5
_HARNESS = """
import math, sys
scope = {"__builtins__": {n: __builtins__.__dict__[n] for n in
    ("all", "any", "range", "int", "len", "sum", "pow", "bool", "min", "max", "abs", "filter",
     "map", "list", "set", "next", "isinstance", "round", "divmod", "zip", "reversed", "str")},
    "math": math, "sqrt": math.sqrt, "isqrt": math.isqrt}
exec(compile(sys.stdin.read(), "answer", "exec"), scope)
print([n for n in range(-2, 50) if scope["is_prime"](n)])
"""
# What a prime function needs; no imports, no names with underscores, no attributes but math's.
_ALLOWED = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Expr, ast.Assign,
    ast.Lambda, ast.If, ast.For, ast.While, ast.AugAssign, ast.IfExp, ast.BoolOp, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.Call, ast.keyword, ast.GeneratorExp, ast.ListComp, ast.SetComp,
    ast.comprehension, ast.Name, ast.Constant, ast.Load, ast.Store, ast.Tuple, ast.List, ast.Set,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Attribute, ast.Import, ast.ImportFrom,
    ast.alias, ast.AnnAssign, ast.Break, ast.Continue, ast.Pass, ast.Subscript, ast.Slice,
)  # fmt: skip


def wrong_prime(text: str) -> str:
    """What is wrong with the function in a model's answer; empty where it finds the primes."""
    code = _code(text)
    if not code:
        return "no Python function in the answer"
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        return f"not Python: {error.msg}"
    if problem := _forbidden(tree):
        return f"not run: {problem}"
    tree.body = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
    names = _defined(tree)
    if not names:
        return "it defines no function"
    alias = "" if "is_prime" in names else f"\nis_prime = {names[0]}"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _HARNESS], input=ast.unparse(tree) + alias,
            capture_output=True, text=True, timeout=SECONDS, preexec_fn=_limits, env={},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it does not end within {SECONDS} s"
    if done.returncode != 0:
        return "it fails: " + (done.stderr.strip().splitlines() or ["killed by a limit"])[-1]
    found = set(map(int, re.findall(r"-?\d+", done.stdout)))
    if found == PRIMES:
        return ""
    return f"wrong for {', '.join(map(str, sorted(found ^ PRIMES)))}"


def _code(text: str) -> str:
    fenced = re.findall(r"```(?:python|py)?\s*\n(.*?)```", text, re.DOTALL)
    for candidate in [*fenced, *re.findall(r"`([^`\n]+)`", text), text]:
        if "lambda" in candidate or "def " in candidate:
            return str(candidate).strip()
    return ""


def _forbidden(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED):
            return f"{type(node).__name__} has no place in a prime function"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if module != "math" or len(node.names) > 2:
                return f"it imports {module}"
        if isinstance(node, ast.Name) and node.id.startswith("_"):
            return f"the name {node.id}"
        if isinstance(node, ast.Attribute):
            owner = node.value
            if not isinstance(owner, ast.Name) or owner.id != "math" or node.attr.startswith("_"):
                return f"the attribute {node.attr}"
    return ""


def _defined(tree: ast.Module) -> list[str]:
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Lambda):
            node.value = ast.NamedExpr(ast.Name("is_prime", ast.Store()), node.value)
            names.append("is_prime")
    return names


def _limits() -> None:
    """Of the child: seconds of CPU, bytes of memory, no files written, no processes of its own."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (512 * 2**20, 512 * 2**20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
