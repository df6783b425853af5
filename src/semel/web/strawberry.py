"""Strawberry: an extension under which a request's key names one GraphQL mutation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

try:
    from graphql import ExecutionResult, GraphQLError
    from graphql.language import (
        FieldNode,
        FragmentDefinitionNode,
        FragmentSpreadNode,
        InlineFragmentNode,
        OperationDefinitionNode,
        SelectionSetNode,
        VariableNode,
    )
    from strawberry.extensions import SchemaExtension
    from strawberry.types import ExecutionContext
    from strawberry.types.graphql import OperationType
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "semel.web.strawberry needs Strawberry: pip install strawberry-graphql"
    ) from error

from semel.core import problems
from semel.core.problems import Problem
from semel.operation import AsyncOperation, current
from semel.runtime.drivers import AsyncDriver, ThreadDriver

__all__ = ["SemelExtension"]

_SEVERAL: Final = (
    "an Idempotency-Key names one mutation, and this request has several: send each of them in a"
    " request of its own, under a key of its own"
)
_MISSING: Final = (
    "this mutation needs an Idempotency-Key: generate one for a new mutation, and send the same"
    " with every retry"
)


class SemelExtension(SchemaExtension):
    """Keeps the results of mutations: `strawberry.Schema(…, extensions=[SemelExtension])`.

    Semel itself is put into the application as ever, with the `init_app` of its framework.

    - A mutation whose result has errors is not kept, though its status is 200: in an atomic
      operation its writes are rolled back, and a retry runs it again. Under
      `guarantee="at-most-once"` it is kept: nothing runs twice there.
    - One key is for one mutation: a document with several, or a batch with one among others, gets
      a GraphQL error, and none of it runs.
    - Queries are not kept, whatever key their request has: a repeat is answered anew.

    `required`: a mutation without a key gets a GraphQL error, and does not run. (The route's own
    `Policy(required=True)` would refuse queries, too.)
    """

    def __init__(
        self, *, required: bool = False, execution_context: ExecutionContext | None = None
    ) -> None:
        self._required = required
        self._ran = False

    def on_operation(self) -> Iterator[None]:
        """Called by Strawberry around each operation of a request."""
        driver = _running()
        self._ran = False
        yield
        if driver is None or driver.finishing or driver.parked is not None:
            return
        result = self.execution_context.result
        failed = result is None or bool(result.errors)
        if not self._ran or (failed and driver.policy.guarantee != "at-most-once"):
            driver.released = True

    def on_execute(self) -> Iterator[None]:
        """Called by Strawberry before an operation is executed, and after it."""
        context = self.execution_context
        if context.operation_type is OperationType.MUTATION:
            driver = _running()
            refusal = self._refusal(driver)
            if refusal is not None:
                context.result = ExecutionResult(None, [refusal])
            elif driver is not None:
                self._ran = True
        yield

    def _refusal(self, driver: AsyncDriver | ThreadDriver | None) -> GraphQLError | None:
        if driver is None:
            return _error(_MISSING, problems.KEY_MISSING) if self._required else None
        context = self.execution_context
        alone = len(_mutations(context)) <= 1 and not _in_batch(context.context)
        if alone and driver.key not in _UNDER_WAY:
            _UNDER_WAY.add(driver.key)
            AsyncOperation(driver).when_ended(lambda: _UNDER_WAY.discard(driver.key))
            return None
        return _error(_SEVERAL, problems.KEY_INVALID)


_UNDER_WAY: Final[set[bytes]] = set()
"""The keys whose mutation this process runs."""


def _running() -> AsyncDriver | ThreadDriver | None:
    driver = current.get()
    return None if driver is None or driver.finishing else driver


def _error(message: str, problem: Problem) -> GraphQLError:
    kind = f"{problems.BASE.rstrip('/')}/{problem.slug}"
    return GraphQLError(message, extensions={"code": problem.slug, "type": kind})


def _in_batch(context: object) -> bool:
    """Whether the request's body, as far as it has been read, is a list of operations."""
    if isinstance(context, Mapping):
        request = context.get("request")
    else:
        request = getattr(context, "request", None)
    for name in ("_body", "_cached_data"):  # Starlette's, Werkzeug's
        body = getattr(request, name, None)
        if isinstance(body, bytes):
            return body.lstrip().startswith(b"[")
    return False


def _mutations(context: ExecutionContext) -> set[str]:
    """The names in the response of the fields that a mutation executes."""
    document: Any = context.graphql_document
    fragments: dict[str, FragmentDefinitionNode] = {}
    chosen: OperationDefinitionNode | None = None
    for node in document.definitions:
        if isinstance(node, FragmentDefinitionNode):
            fragments[node.name.value] = node
        elif isinstance(node, OperationDefinitionNode):
            name = node.name.value if node.name is not None else None
            if chosen is None or name == context.operation_name:
                chosen = node
    assert chosen is not None
    variables = {
        each.variable.name.value: getattr(each.default_value, "value", None)
        for each in chosen.variable_definitions or ()
    }
    variables.update(context.variables or {})
    return set(_fields(chosen.selection_set, fragments, variables))


def _fields(
    selections: SelectionSetNode,
    fragments: Mapping[str, FragmentDefinitionNode],
    variables: Mapping[str, Any],
) -> Iterator[str]:
    for node in selections.selections:
        if not _included(node, variables):
            continue
        if isinstance(node, FieldNode):
            if not node.name.value.startswith("__"):
                yield (node.alias or node.name).value
        elif isinstance(node, InlineFragmentNode):
            yield from _fields(node.selection_set, fragments, variables)
        elif isinstance(node, FragmentSpreadNode):
            yield from _fields(fragments[node.name.value].selection_set, fragments, variables)


def _included(node: Any, variables: Mapping[str, Any]) -> bool:
    """Whether `@skip` and `@include` leave a selection in."""
    for directive in node.directives or ():
        wanted = {"include": True, "skip": False}.get(directive.name.value)
        if wanted is None or not directive.arguments:
            continue
        value = directive.arguments[0].value
        known = variables.get(value.name.value) if isinstance(value, VariableNode) else value.value
        if bool(known) is not wanted:
            return False
    return True
