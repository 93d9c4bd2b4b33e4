"""The library's reference as Markdown pages.

It is read from the source without importing it: names, signatures, docstrings,
comments of parameters.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "transfer_course"
FIELDS_FROM = {"NamedTuple"}


@dataclass
class Module:
    """One source file: its tree and the comments of its lines."""

    name: str
    tree: ast.Module
    comments: dict[int, str]
    notebook: str | None
    public: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]


def _literal(tree: ast.Module, name: str):
    """The value of a module's `name = [...]`, or None."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return ast.literal_eval(node.value)
    return None


def read_module(path: Path, root: Path) -> Module:
    """Parse one file.

    Public is what `__all__` says; without it, what has a docstring and no underscore.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {
        t.start[0]: t.string.lstrip("# ").strip()
        for t in tokens
        if t.type == tokenize.COMMENT
    }
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    _qualify(tree, name)
    made_by = re.search(r"File to edit: (?:\.\./)*(nbs/\S+\.ipynb)", text)
    module = Module(name, tree, comments, made_by and made_by[1])
    module.public = _literal(tree, "__all__") or [
        n.name for n in _definitions(tree).values() if _shown(n)
    ]
    return module


def _qualify(tree: ast.Module, module: str) -> None:
    """Write imported names in annotations in full: several modules have a `Network`.

    Sphinx shows the last part and links to the right one.
    """
    full = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names if origin.startswith(PACKAGE) else ():
                full[alias.asname or alias.name] = f"{origin}.{alias.name}"
    for node in ast.walk(tree):
        for annotation in (
            getattr(node, "annotation", None),
            getattr(node, "returns", None),
        ):
            for name in ast.walk(annotation) if annotation else ():
                if isinstance(name, ast.Name):
                    name.id = full.get(name.id, name.id)


def _definitions(tree) -> dict[str, ast.AST]:
    """Functions and classes of a module or a class by name; the last one counts."""
    return {
        n.name: n
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }


def _shown(node) -> bool:
    return not node.name.startswith("_") and bool(ast.get_docstring(node))


def modules(root: Path) -> list[Module]:
    """The public modules with something to show, in the order of their names."""
    paths = [
        p
        for p in sorted((root / PACKAGE).rglob("*.py"))
        if not p.name.startswith("_") and "lessons" not in p.parts
    ]
    found = [read_module(p, root) for p in paths]
    return [m for m in found if m.public and m.name != f"{PACKAGE}.cli"]


def parameters(
    node, comments: dict[int, str], bound: bool
) -> tuple[str, dict[str, str]]:
    """A function's parameters as one line, and what the comments beside them say.

    `bound` leaves self out.
    """
    a = node.args
    args = [*a.posonlyargs, *a.args]
    said = {}
    last = node.body[0].lineno
    for arg in [*args, a.vararg, *a.kwonlyargs, a.kwarg]:
        if arg is not None and arg.lineno in comments and arg.lineno < last:
            # A line's comment is its last parameter's.
            said = {k: v for k, v in said.items() if v is not comments[arg.lineno]}
            said[arg.arg] = comments[arg.lineno]
    if bound and args:
        (a.posonlyargs or a.args).pop(0)
    return ast.unparse(a), said


def returns(node, comments: dict[int, str]) -> tuple[str, str]:
    """The annotation of what comes back, and its comment."""
    if node.returns is None:
        return "", ""
    line = node.returns.lineno
    taken = {x.lineno for x in ast.walk(node.args) if isinstance(x, ast.arg)}
    told = (
        comments.get(line, "")
        if line < node.body[0].lineno and line not in taken
        else ""
    )
    return f" -> {ast.unparse(node.returns)}", told


def class_fields(
    node: ast.ClassDef, comments: dict[int, str], classes: dict
) -> list[tuple[str, str, str]]:
    """(name, `name: type = default`, comment) of a dataclass or named tuple.

    What it inherits comes first.
    """
    decorated = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    bases = [ast.unparse(b) for b in node.bases]
    out = {}
    for base in bases:
        if base in classes:
            out |= {f[0]: f for f in class_fields(*classes[base], classes)}
    if decorated or FIELDS_FROM & set(bases):
        for n in node.body:
            if (
                isinstance(n, ast.AnnAssign)
                and not n.target.id.startswith("_")
                and "ClassVar" not in ast.unparse(n.annotation)
            ):
                default = "" if n.value is None else ast.unparse(n.value)
                if "init=False" in default:
                    continue
                made = re.fullmatch(r"field\(default_factory=(.+)\)", default)
                default = f"{made[1]}()" if made and made[1].isidentifier() else default
                one = f"{n.target.id}: {ast.unparse(n.annotation)}" + (
                    f" = {default}" if default else ""
                )
                out[n.target.id] = (
                    n.target.id,
                    one,
                    comments.get(n.lineno) or comments.get(n.end_lineno, ""),
                )
    return list(out.values())


def block(
    directive: str, head: str, body: list[str], options: str = "", ticks: int = 4
) -> str:
    """A directive in a fence; `ticks` grows with what it holds."""
    fence = "`" * ticks
    return "\n".join(
        [
            f"{fence}{{py:{directive}}} {head}",
            *([options] if options else []),
            "",
            *body,
            fence,
        ]
    )


def _doc(node) -> list[str]:
    text = ast.get_docstring(node)
    return [text, ""] if text else []


def function(node, module: Module, inside: bool = False) -> str:
    """One function, method or property."""
    marks = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
    static = "staticmethod" in marks
    line, said = parameters(node, module.comments, bound=inside and not static)
    arrow, told = returns(node, module.comments)
    if inside and marks & {"property", "cached_property"}:
        return block(
            "property",
            node.name,
            _doc(node),
            f":type: {json.dumps(arrow[4:])}" if arrow else "",
        )
    fields = [f":param {k}: {v}" for k, v in said.items()] + (
        [f":returns: {told}"] if told else []
    )
    kind = (
        "classmethod"
        if "classmethod" in marks
        else "staticmethod"
        if static
        else "method"
        if inside
        else "function"
    )
    return block(kind, f"{node.name}({line}){arrow}", [*_doc(node), *fields])


def class_(node: ast.ClassDef, module: Module, classes: dict) -> str:
    """One class with its fields and its public methods."""
    inner = _definitions(node)
    if "__init__" in inner:
        line, said = parameters(inner["__init__"], module.comments, bound=True)
        fields = [f":param {k}: {v}" for k, v in said.items()]
    else:
        known = class_fields(node, module.comments, classes)
        line = ", ".join(one for _, one, _ in known)
        fields = [f":param {k}: {said}" for k, _, said in known if said]
    body = _doc(node)
    bases = [ast.unparse(b) for b in node.bases if ast.unparse(b) != "object"]
    if bases:
        body += [f"Bases: {', '.join(f'`{b}`' for b in bases)}", ""]
    body += [*fields, ""]
    for n in inner.values():
        if not n.name.startswith("_") and not isinstance(n, ast.ClassDef):
            body += [function(n, module, inside=True), ""]
    exception = node.name.endswith("Error") or any(
        b.endswith(("Error", "Exception")) for b in bases
    )
    return block(
        "exception" if exception else "class",
        f"{node.name}({line})" if line else node.name,
        body,
        ticks=5,
    )


def page(module: Module, classes: dict) -> str:
    """A module's page."""
    defined = _definitions(module.tree)
    out = [
        f"# `{module.name.removeprefix(PACKAGE + '.')}`",
        "",
        f"```{{py:module}} {module.name}\n```",
        "",
        *_doc(module.tree),
    ]
    if module.notebook:
        out += [
            (
                f"Written from [its notebook](/{module.notebook}), which shows every "
                "piece at work."
            ),
            "",
        ]
    for name in module.public:
        node = defined.get(name)
        if node is None:
            value = next(
                (
                    n.value
                    for n in module.tree.body
                    if isinstance(n, ast.Assign) and name in map(ast.unparse, n.targets)
                ),
                None,
            )
            shown = " ".join(ast.unparse(value).split()) if value is not None else ""
            shown = shown if len(shown) <= 160 else shown[:157] + "..."
            out += [
                block(
                    "data",
                    name,
                    [],
                    f":value: {json.dumps(shown, ensure_ascii=False)}" if shown else "",
                ),
                "",
            ]
        else:
            out += [
                class_(node, module, classes)
                if isinstance(node, ast.ClassDef)
                else function(node, module),
                "",
            ]
    return "\n".join(out)


def top_names(root: Path) -> dict[str, str]:
    """Name to module of what `import transfer_course` offers directly.

    It is read from `submod_attrs`.
    """
    tree = ast.parse((root / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    keywords = [
        k
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
        for k in n.keywords
        if k.arg == "submod_attrs"
    ]
    pairs = ast.literal_eval(keywords[0].value) if keywords else {}
    return {name: module for module, names in pairs.items() for name in names}


def commands() -> str:
    """The command line as it explains itself."""
    import click
    import typer

    from transfer_course.cli import app

    group = typer.main.get_command(app)
    context = click.Context(
        group, info_name="transfer-course", terminal_width=100, max_content_width=100
    )
    out = [
        "# Command line",
        "",
        "What `--help` says.",
        "",
        "```text",
        group.get_help(context),
        "```",
        "",
    ]
    for name, command in group.commands.items():
        inner = click.Context(
            command,
            info_name=name,
            parent=context,
            terminal_width=100,
            max_content_width=100,
        )
        out += [
            f"## transfer-course {name}",
            "",
            "```text",
            command.get_help(inner),
            "```",
            "",
        ]
    return "\n".join(out)


def write_reference(root: Path, to: Path) -> list[Module]:
    """All pages and their index into the folder `to`."""
    to.mkdir(parents=True, exist_ok=True)
    found = modules(root)
    classes = {
        n.name: (n, m.comments)
        for m in found
        for n in _definitions(m.tree).values()
        if isinstance(n, ast.ClassDef)
    }
    out = [
        "# Library",
        "",
        (
            "Every public name, read from the source: its signature, what it does, "
            "what its parameters mean."
        ),
        "",
    ]
    out += [
        "`from transfer_course import …` offers the names that a run needs:",
        "",
        "| name | from |",
        "|---|---|",
    ]
    out += [
        f"| {{py:obj}}`{n} <{PACKAGE}.{m}.{n}>` | [{m}]({PACKAGE}.{m}.md) |"
        for n, m in sorted(top_names(root).items())
    ]
    out += ["", "## Modules", "", "| module | what it is about |", "|---|---|"]
    for m in found:
        short = m.name.removeprefix(PACKAGE + ".")
        out.append(
            f"| [{short}]({m.name}.md) | {m.summary.replace('|', chr(92) + '|')} |"
        )
        (to / f"{m.name}.md").write_text(page(m, classes), encoding="utf-8")
    (to / "commands.md").write_text(commands(), encoding="utf-8")
    listed = "\n".join(["commands", *(m.name for m in found)])
    out += ["", f"```{{toctree}}\n:hidden:\n\n{listed}\n```", ""]
    (to / "index.md").write_text("\n".join(out), encoding="utf-8")
    return found
