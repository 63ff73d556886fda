"""The rules of the house that a machine can check: who may import whom, and what nobody may do.

Reads source as text and imports none of it. Each rule takes one file and yields what is wrong in it.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
# Path, or path:function -> the reason why it has to be longer.
TOO_LONG: dict[str, str] = {}


@dataclass(frozen=True)
class Source:
    """One file: its path from the root, its text and its syntax tree."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)


Finding = tuple[int, str]  # line, what is wrong there
Rule = Callable[[Source], Iterator[Finding]]


def names_within(name: str, prefixes: tuple[str, ...]) -> bool:
    """Whether the dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def imports(source: Source) -> Iterator[tuple[int, str, str]]:
    """Every import, wherever it stands: line, the local name it binds, the full dotted name."""
    package = source.path.removesuffix(".py").replace("/", ".").rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield node.lineno, alias.asname or alias.name, f"{module}.{alias.name}"


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or an attribute; empty for the attribute of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def last(name: str) -> str:
    """`c` of `a.b.c`."""
    return name.rpartition(".")[2]


def uses(source: Source) -> Iterator[tuple[int, str]]:
    """Every dotted name that is imported or used, with what its first part was imported as."""
    bound = {}
    for line, local, full in imports(source):
        bound[local] = full
        yield line, full
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := dotted(node)):
            head, dot, rest = name.partition(".")
            yield node.lineno, bound.get(head, head) + dot + rest


# --- Who may import whom -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Door:
    """In the files that match `path`, the names that may not be imported, but for those `allowed`."""

    title: str
    path: str
    refused: tuple[str, ...]
    allowed: tuple[str, ...] = ()
    exempt: tuple[str, ...] = ()  # files that another door covers

    def __call__(self, source: Source) -> Iterator[Finding]:
        if not fnmatch(source.path, self.path) or source.path in self.exempt:
            return
        for line, _, name in imports(source):
            if names_within(name, self.refused) and not names_within(name, self.allowed):
                yield line, f"imports {name}"


SEAM = ("model.interface", "model.sampling.sampling_params")
LOADERS = ("server/cli.py", "server/engine/worker.py")
PLANNER = "server/engine/planner.py"
MEASURER = "server/engine/measurer.py"
SERIALIZERS = ("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
CONCURRENCY = ("asyncio", "threading", "multiprocessing", "concurrent", "anyio")
DOORS = [
    Door(
        "1: model/ knows nothing of the server",
        "model/*",
        ("server", "fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "asyncio"),
    ),
    Door("2: server/ never imports torch", "server/*", ("torch",)),
    Door(
        "2: of model/, server/ sees the seam",
        "server/*",
        ("model",),
        SEAM,
        exempt=(*LOADERS, PLANNER, MEASURER),
    ),
    *(Door(f"2: {path} may name the runner", path, ("model",), (*SEAM, "model.runner")) for path in LOADERS),
    Door(
        "2: the planner may look at a folder, too",
        PLANNER,
        ("model",),
        (*SEAM, "model.runner", "model.inspection"),
    ),
    Door(
        "2: the measurer may ask what the machine allows, too",
        MEASURER,
        ("model",),
        (*SEAM, "model.runner", "model.roofline"),
    ),
    Door(
        "3: server/engine/ knows nothing of HTTP or text",
        "server/engine/*",
        (
            "fastapi",
            "starlette",
            "prometheus_client",
            "tokenizers",
            "transformers",
            "server.api",
            "server.text",
        ),
    ),
    *(
        Door(f"3: the engine's heart, {name}.py, is sequential", f"server/engine/{name}.py", CONCURRENCY)
        for name in ("scheduler", "block_manager", "sequence", "engine")
    ),
    Door(
        "4: server/api/ reaches the engine through its client",
        "server/api/*",
        ("server.engine",),
        ("server.engine.client", "server.engine.request"),
    ),
    Door("6: a model's folder is data", "*", (*SERIALIZERS, "runpy", "torch.hub", "torch.package")),
]


# --- What nobody may do ------------------------------------------------------------------------------


ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "pydantic_settings")


def reads_environment(source: Source) -> Iterator[Finding]:
    """5: only settings.py reads the environment."""
    if source.path == "server/settings.py":
        return
    for line, name in uses(source):
        if names_within(name, ENVIRONMENT):
            yield line, f"uses {name}: a setting belongs in server/settings.py"


COMPOSED = ("FastAPI", "Settings", "Metrics", "Engine", "ModelRunner")
COMPOSERS = ("server/cli.py", "server/app.py", "server/engine/worker.py")


def composes_elsewhere(source: Source) -> Iterator[Finding]:
    """5: only cli.py, app.py and worker.py construct the parts of a server."""
    if not source.path.startswith("server/") or source.path in COMPOSERS:
        return
    own = {node.name for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(source.tree):  # a class's own file may hold its factory
        if isinstance(node, ast.Call) and (name := last(dotted(node.func))) in COMPOSED and name not in own:
            yield node.lineno, f"constructs {name}: let it be handed in"


def runs_foreign_code(source: Source) -> Iterator[Finding]:
    """6: nothing that a file or a request holds is ever run."""
    refused = ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile")
    loads = ("torch.load", "torch.serialization.load", "torch.jit.load", "torch.hub", "torch.package")
    importers = ("spec_from_file_location", "exec_module", "SourceFileLoader")
    for line, name in uses(source):
        if name in refused or names_within(name, loads) or last(name) in importers:
            yield line, f"uses {name}"
    for node in ast.walk(source.tree):
        words = {getattr(node, field, None) for field in ("id", "arg", "attr")}
        for word in words & {"trust_remote_code", "allow_pickle"}:
            yield getattr(node, "lineno", 0), f"names {word}"


MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp, ast.Call)
# What these make at the top of a module is as good as a constant, and has a lower-case name by custom.
HARMLESS = (
    *("APIRouter", "Decoder", "Encoder", "NewType", "TypeVar", "attrgetter", "create_model", "getLogger"),
    *("itemgetter", "namedtuple"),
)
MUTATORS = (
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft"),
    *("remove", "reverse", "setdefault", "sort", "update"),
)


def is_constant(name: str) -> bool:
    return name.startswith("__") or (len(name) > 1 and name.isupper())


def holds_module_state(source: Source) -> Iterator[Finding]:
    """5: a module holds constants, in capitals, and nobody changes them."""
    for statement in source.tree.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(statement.value, MUTABLE):
            continue
        if isinstance(statement.value, ast.Call) and last(dotted(statement.value.func)) in HARMLESS:
            continue
        for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
            if not is_constant(name := dotted(target)):
                yield statement.lineno, f"{name} can change: write it in capitals, and never change it"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        elif (changed := changed_by(node)) and is_constant(last(changed)):
            yield getattr(node, "lineno", 0), f"changes the constant {changed}"
    for line, name in uses(source):
        if name in ("functools.cache", "functools.lru_cache"):
            yield line, f"{name} keeps state in the module"


def changed_by(node: ast.AST) -> str:
    """The dotted name whose object this node changes in place, if any."""
    match node:
        case ast.Subscript(value=target, ctx=ast.Store() | ast.Del()):
            return dotted(target)
        case ast.Attribute(value=target, ctx=ast.Store() | ast.Del()):
            return dotted(target)
        case ast.AugAssign(target=target):
            return dotted(target)
        case ast.Call(func=ast.Attribute(value=target, attr=method)) if method in MUTATORS:
            return dotted(target)
    return ""


def lacks_docstring(source: Source) -> Iterator[Finding]:
    """A file opens with what it decides and what it refuses to know; an empty __init__.py need not."""
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield 1, "no docstring"


def is_too_long(source: Source) -> Iterator[Finding]:
    """A file of 300 lines, a function of 60: a longer one stands in TOO_LONG with its reason."""
    measured = {source.path: (1, len(source.text.splitlines()), MAX_FILE_LINES)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
            measured[f"{source.path}:{node.name}"] = (node.lineno, num_lines, MAX_FUNCTION_LINES)
    for name, (line, num_lines, limit) in measured.items():
        if num_lines > limit and name not in TOO_LONG:
            yield line, f"{name} has {num_lines} lines, of {limit}"


RULES: list[Rule] = [
    *DOORS,
    reads_environment,
    composes_elsewhere,
    runs_foreign_code,
    holds_module_state,
    lacks_docstring,
    is_too_long,
]


def title(rule: Rule) -> str:
    """What the rule says, opened by the number of its door if it has one."""
    return rule.title if isinstance(rule, Door) else (rule.__doc__ or "").partition("\n")[0]
