"""The compiler: a chat template's source -> Python code that asks the sandbox for everything.

Nothing is computed while compiling, and the source is bounded in every direction in which compiling could take long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension

from polargrid_local.chat.budget import MAX_DEPTH, over_limit
from polargrid_local.errors import TemplateError

# The largest template that llama.cpp carries has 17 KB, 4,000 tokens, 110 branches over 60 names, and is 30 deep.
MAX_SOURCE_BYTES = 262_144
MAX_SOURCE_TOKENS = 20_000
MAX_BRANCHED_NAMES = 500_000  # branches times names: Jinja copies its table of names at every branch

MAX_LITERAL = 2_000  # digits of a number: Python's time to read them grows with their square

_DIGITS = re.compile(r"[0-9A-Fa-f_]+")


class GenerationTag(Extension):
    """{% generation %}, which marks an assistant's text for training: its content is rendered, the tag ignored."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_OPENING = frozenset(("if", "for", "macro", "call", "filter", "with", "block", "generation"))


class TokenLimits(Extension):
    """Counts tokens, open brackets and open blocks before the parser, which recurses, sees them."""

    def filter_stream(self, stream: Any) -> Iterator[Any]:
        brackets = blocks = 0
        before = ""
        for count, token in enumerate(stream):
            brackets += (token.type in ("lparen", "lbracket", "lbrace")) - (
                token.type in ("rparen", "rbracket", "rbrace")
            )
            if before == "block_begin" and token.type == "name":
                blocks += (token.value in _OPENING) - token.value.startswith("end")
            before = token.type
            if count > MAX_SOURCE_TOKENS:
                raise over_limit(f"more than {MAX_SOURCE_TOKENS} tokens", MAX_SOURCE_TOKENS)
            if max(brackets, blocks) > MAX_DEPTH:
                raise over_limit(f"brackets or blocks nested deeper than {MAX_DEPTH}", MAX_DEPTH)
            yield token


class SandboxCodeGenerator(CodeGenerator):
    """Generates Python in which each operation that Jinja would do by itself is a call of the sandbox."""

    def visit_Call(self, node: nodes.Call, frame: Any, forward_caller: bool = False) -> None:
        if isinstance(node.node, nodes.EnvironmentAttribute):  # a call that `compile_template` has put in
            self._ask(node.node.name, node.args, frame)
        else:
            super().visit_Call(node, frame, forward_caller=forward_caller)

    def _ask(self, name: str, args: Sequence[nodes.Node], frame: Any) -> None:
        self.write(f"environment.{name}(")
        for arg in args:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.glue((")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:
        self.write("environment.compare(")
        self.visit(node.expr, frame)
        for operand in node.ops:
            self.write(f", {operand.op!r}, ")
            self.visit(operand.expr, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:
        self._ask("getitem", (node.node, node.arg), frame)

    def visit_Slice(self, node: nodes.Slice, frame: Any) -> None:
        self.write("slice(")
        for part in (node.start, node.stop, node.step):
            if part is None:
                self.write("None")
            else:
                self.visit(part, frame)
            self.write(", ")
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self.write("environment.weighed(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        if node.ctx != "load":  # on the left of an assignment
            return super().visit_Tuple(node, frame)
        self.write("environment.weighed(")
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self.write("environment.mapping((")
        for pair in node.items:
            self.write("(")
            self.visit(pair.key, frame)
            self.write(", ")
            self.visit(pair.value, frame)
            self.write("), ")
        self.write("))")

    def _output_child_to_const(self, node: nodes.Expr, frame: Any, finalize: Any) -> str:
        if isinstance(node, nodes.TemplateData):
            return super()._output_child_to_const(node, frame, finalize)
        raise nodes.Impossible  # tells Jinja not to compute it while compiling

    def _output_child_pre(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        self.write("environment.shown(")

    def _output_child_post(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        self.write(")")


_SYNTAX = frozenset(
    [
        "Add",
        "And",
        "Assign",
        "AssignBlock",
        "Block",
        "Break",
        "Call",
        "CallBlock",
        "Compare",
        "Concat",
        "CondExpr",
        "Const",
        "Continue",
        "Dict",
        "Div",
        "ExprStmt",
        "Filter",
        "FilterBlock",
        "FloorDiv",
        "For",
        "Getattr",
        "Getitem",
        "If",
        "Keyword",
        "List",
        "Macro",
        "Mod",
        "Mul",
        "NSRef",
        "Name",
        "Neg",
        "Not",
        "Operand",
        "Or",
        "Output",
        "Pair",
        "Pos",
        "Pow",
        "Scope",
        "Slice",
        "Sub",
        "Template",
        "TemplateData",
        "Test",
        "Tuple",
        "With",
    ]
)
_BRANCHES = (
    nodes.If,
    nodes.For,
    nodes.Macro,
    nodes.CallBlock,
    nodes.FilterBlock,
    nodes.With,
    nodes.AssignBlock,
    nodes.Block,
)


def compile_template(source: str, sandbox: jinja2.Environment) -> CodeType:
    """The template as code that any Sandbox can run. Raises TemplateError, or what Jinja raises for bad syntax."""
    try:
        size = len(source.encode())
    except UnicodeEncodeError as error:
        raise TemplateError(f"chat template: not valid text, character {error.start} is half a character") from None
    if size > MAX_SOURCE_BYTES:
        raise over_limit(f"{size} bytes, the limit is {MAX_SOURCE_BYTES}", MAX_SOURCE_BYTES)
    if "\0" in source:
        raise TemplateError(f"chat template: not text, character {source.index(chr(0))} is NUL")
    if any(len(run[0]) > MAX_LITERAL for run in _DIGITS.finditer(source)):
        raise over_limit(f"a number of more than {MAX_LITERAL} digits", MAX_LITERAL)
    tree = sandbox.parse(source)
    _check(tree)
    bodies: list[Any] = list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)))
    for node in bodies:
        # Each run of a body pays for those of its parts that cost nothing by themselves: names, branches, constants.
        price = 1 + sum(len(list(part.find_all(nodes.Node))) for part in node.body) // 16
        node.body.insert(0, nodes.ExprStmt(_ours("spend", nodes.Const(price))))
        if isinstance(node, nodes.For) and node.test is not None:
            node.iter = _ours("each", node.iter)
    tree.set_environment(sandbox)
    return sandbox.compile(tree, name="chat_template")


def _ours(name: str, arg: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [arg], [], None, None)


def _check(tree: nodes.Template) -> None:
    names: set[str] = set()
    n_branches = 0
    stack: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        kind = type(node).__name__
        if kind not in _SYNTAX:
            raise TemplateError(f"chat template, line {node.lineno}: {kind} is not available")
        if depth > MAX_DEPTH:
            raise over_limit(f"line {node.lineno} is nested deeper than {MAX_DEPTH}", MAX_DEPTH)
        if isinstance(node, (nodes.Name, nodes.Macro)):
            names.add(node.name)
        n_branches += isinstance(node, _BRANCHES)
        stack += [(child, depth + 1) for child in node.iter_child_nodes()]
    if n_branches * len(names) > MAX_BRANCHED_NAMES:
        raise over_limit(f"{n_branches} branches over {len(names)} names", MAX_BRANCHED_NAMES)
