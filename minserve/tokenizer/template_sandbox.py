"""jinja2's sandbox for chat templates, with a budget.

The sandbox prevents a template from accessing anything but its arguments. It does not limit time
and memory, so loops, calls, filters, operators and output are all charged to `template_budget`.
jinja2 compiles a template to Python without hooks for loops and concatenations: these are rewritten
into filters first. Imported only when a chat is rendered.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from minserve.tokenizer.template_budget import (
    TemplateLimit,
    charge,
    charge_binary,
    charge_join,
    charge_method,
    charge_nested,
    charge_replace,
    charge_result,
    check_format,
)

_SHALLOW = frozenset(
    {"length", "count", "first", "last", "default", "d", "items", "list", "select", "selectattr"}
    | {"reject", "rejectattr", "map", "reverse", "batch", "slice", "random", "attr", "int", "float"}
)
"""Filters that do not read the items of their input."""
_COMPARING_TESTS = (
    *("eq", "equalto", "==", "ne", "!=", "lt", "<", "lessthan", "le", "<="),
    *("gt", ">", "greaterthan", "ge", ">=", "in"),
)


class _GenerationBlocks(Extension):
    """`{% generation %}` marks the text that training learns; it has no effect here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

    def parse(self, parser: Any) -> nodes.Node:
        """The block's content."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_MOST_LEVELS = 100
"""Levels of indentation that Python compiles; a block in a template is at least one of them."""


def _check_depth(tree: nodes.Template) -> None:
    """Raise IndentationError for blocks nested deeper than Python compiles. Jinja would find that
    out only after work that grows with the square of the depth."""
    level: list[nodes.Node] = [tree]
    for _ in range(_MOST_LEVELS + 2):
        level = [
            child
            for node in level
            for child in node.iter_child_nodes()
            if isinstance(child, nodes.For | nodes.If | nodes.With | nodes.Macro | nodes.CallBlock)
        ]
        if not level:
            return
    raise IndentationError(f"too many levels of indentation: blocks nested over {_MOST_LEVELS}")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """An environment for one template, with the settings that transformers uses."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, filters: Mapping[str, Any], functions: Mapping[str, Any]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlocks, loopcontrols],
            finalize=_written,
        )
        # lipsum returns random filler text of any length.
        self.globals.pop("lipsum", None)
        self.globals.update(functions)
        self.filters |= filters
        self.filters = {name: _paid_filter(name, each) for name, each in self.filters.items()}
        self.filters |= _REWRITTEN
        for name in _COMPARING_TESTS:
            self.tests[name] = _paid_test(cast(Any, self.tests[name]))
        self.static_chars = 0
        """Characters of the template outside of expressions: a macro may write this many per
        call."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _check_depth(tree)
        self.static_chars = _static_chars(tree)
        _Rewriter().visit(tree)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Run an operator, charged first."""
        charge_binary(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a call, charged by what it may produce, and afterwards by its result."""
        if isinstance(__obj, Macro):
            charge(__self.static_chars)
        else:
            charge_method(__obj, args)
            if isinstance(__obj, (types.MethodType, types.BuiltinMethodType)):
                # `list.index` and `loop.changed` compare with the contents of their arguments.
                for each in args:
                    _compared(each)
        return charge_result(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up an item, charged first: hashing a nested tuple visits all of it."""
        if isinstance(argument, tuple):
            charge_nested(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format`, which could pad to any width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        formatted = wrapped

        def paid(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__)
            charge_nested([*args, *kwargs.values()])
            text: str = charge_result(formatted(*args, **kwargs))
            return text

        return paid


class _Rewriter(NodeTransformer):
    """Inserts filters where jinja2's generated code has no hook."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_each", nodes.Const(_static_chars(node)))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        # A comparison ends with the smaller side: all sides but one must be charged.
        node.expr = _comparable(node.expr)
        for operand in node.ops[:-1]:
            operand.expr = _comparable(operand.expr)
        return node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx != "load" else _comparable(node)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _comparable(node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "_sliced") if isinstance(node.arg, nodes.Slice) else node


def _filter(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _comparable(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter(node, "_compared")


def _static_chars(node: nodes.Node) -> int:
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def _each(items: Any, static_chars: int) -> Iterator[Any]:
    for item in items:
        charge(static_chars)
        yield item


def _concat(parts: list[Any]) -> str:
    for part in parts:
        _written(part)
    return "".join(map(str, parts))


def _compared(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        charge_nested(value)
    return value


def _written(value: Any) -> Any:
    """Charge for a value that will be converted to text."""
    if isinstance(value, Namespace):
        # Its text would show everything in it, which no template needs.
        raise TemplateLimit("it writes a namespace as text")
    charge_nested(value)
    return value


_REWRITTEN: dict[str, Callable[..., Any]] = {
    "_each": _each,
    "_concat": _concat,
    "_compared": _compared,
    "_sliced": charge_result,
}


def _paid_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is charged before it runs, by its own rule if it multiplies its input."""
    # Some filters take jinja2's context or environment before the value.
    at = 1 if hasattr(function, "jinja_pass_arg") else 0
    check = _CHECKS.get(name)

    @functools.wraps(function)
    def paid(*args: Any, **kwargs: Any) -> Any:
        value = args[at] if len(args) > at else None
        if name == "join" and isinstance(value, Iterator):
            # The result of `map` has no length before it is complete.
            value = list(_each(value, 0))
            args = (*args[:at], value, *args[at + 1 :])
        weight, depth = (0, 0) if name in _SHALLOW else _written_weight(value)
        if check is not None:
            check(value, [*args[at + 1 :], *kwargs.values()], weight, depth)
        else:
            charge(0)
        return charge_result(function(*args, **kwargs))

    return paid


def _written_weight(value: Any) -> tuple[int, int]:
    if isinstance(value, Namespace):
        raise TemplateLimit("it writes a namespace as text")
    return charge_nested(value)


def _paid_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def paid(value: Any, *args: Any) -> Any:
        charge_nested(value)
        return function(value, *args)

    return paid


Check = Callable[[Any, list[Any], int, int], None]
"""A function of a filter's value, its other arguments, and the value's weight and depth."""


def _integers(args: list[Any]) -> int:
    return sum(abs(each) for each in args if isinstance(each, int))


def _texts(args: list[Any]) -> int:
    return sum(len(each) for each in args if isinstance(each, str))


def _pay_width(value: Any, args: list[Any], weight: int, depth: int) -> None:
    charge(_integers(args) * 8)


def _pay_per_line(value: Any, args: list[Any], weight: int, depth: int) -> None:
    lines = 1 + str(value).count("\n")
    charge(lines * (_integers(args) + _texts(args)))


def _pay_per_char(value: Any, args: list[Any], weight: int, depth: int) -> None:
    charge(weight * (1 + _texts(args)))


def _pay_indents(value: Any, args: list[Any], weight: int, depth: int) -> None:
    # At most one line per item, with one more indent per level.
    charge(weight // 8 * (depth * (_integers(args) + _texts(args)) + 1))


def _pay_replace(value: Any, args: list[Any], weight: int, depth: int) -> None:
    if len(args) >= 2:
        charge_replace(str(value), str(args[0]), str(args[1]))


def _pay_join(value: Any, args: list[Any], weight: int, depth: int) -> None:
    charge_join(args[0] if args and isinstance(args[0], str) else "", value)


def _pay_format(value: Any, args: list[Any], weight: int, depth: int) -> None:
    check_format(str(value))
    charge_nested(args)


def _pay_sum(value: Any, args: list[Any], weight: int, depth: int) -> None:
    if any(isinstance(each, (list, tuple)) for each in args):
        raise TemplateLimit("it sums lists, which copies them again for each")


_CHECKS: dict[str, Check] = {
    "center": _pay_width,
    "batch": _pay_width,
    "slice": _pay_width,
    "round": _pay_width,
    "indent": _pay_per_line,
    "wordwrap": _pay_per_char,
    "urlize": lambda value, args, weight, depth: charge(50 * weight),
    "tojson": _pay_indents,
    "replace": _pay_replace,
    "join": _pay_join,
    "format": _pay_format,
    "sum": _pay_sum,
}
