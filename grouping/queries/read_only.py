"""What a query may do that only reads: one SELECT, or EXPLAIN of one, of functions that compute.

DuckDB's read-only mode guards the tables alone. A COPY still writes any file, and some
functions act when they are called in a SELECT. So a query is parsed first: DuckDB gives
the tree of a SELECT as JSON, and of nothing else. Every function in the tree is looked
up in `functions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import duckdb
import orjson

from tracetune.errors import QueryError
from tracetune.grouping.queries.functions import REFUSED, is_harmless
from tracetune.grouping.queries.refusals import WRITE_TO_DO_MORE, reason_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SPACE = r"[ \t\r\n\f\v]"
_EXPLAIN = re.compile(rf"{_SPACE}*EXPLAIN{_SPACE}+(?:ANALYZE{_SPACE}+)?(?P<options>\([^()'\"]*\){_SPACE}*)?", re.I)
_VIEW_COLUMNS = r"""(?:\s*\((?:"(?:[^"]|"")*"|[^")])*\))?\s+AS\s"""


def check_query(connection: DuckDBPyConnection, query: str, *, checks_definitions: bool = False) -> None:
    """Refuse a query that does more than read, before anything of it runs.

    Args:
        connection: to the store, closed off.
        query: what was asked.
        checks_definitions: look also into the views and macros that the file defines: the
            file may come from somebody else, and a macro can have the name of DuckDB's own.

    Raises:
        QueryError: if the query is not one SELECT or EXPLAIN of one, or calls a function
            that acts, or one that nobody judged.
    """
    names = set(_functions_of(connection, query))
    macros = _macros(connection) if checks_definitions or not all(map(is_harmless, names)) else {}
    _check_functions(connection, names, macros)
    if checks_definitions:
        for view, definition in _views(connection):
            try:
                _check_functions(connection, set(_functions_of(connection, definition)), macros)
            except QueryError as error:
                raise QueryError(f"the view {view} of this store is not safe to read: {error}") from error


def check_expression(connection: DuckDBPyConnection, text: str) -> None:
    """Refuse a text that is not one expression of functions that compute.

    Raises:
        QueryError: if the text is a statement, or several, or closes a parenthesis that it
            did not open, or calls a function that acts.
    """
    query = f"SELECT (\n{text}\n)"
    [given], [least] = _trees(connection, query), _trees(connection, "SELECT (1)")
    # Whatever else a SELECT can have (FROM, UNION, GROUP BY, …) shows beside its list.
    expressions = given["node"].pop("select_list", [])
    del least["node"]["select_list"]
    if len(expressions) != 1 or given["node"] != least["node"]:
        raise QueryError("the text is more than one expression")
    check_query(connection, query)


def _check_functions(connection: DuckDBPyConnection, names: set[str], macros: dict[str, str]) -> None:
    """Refuse functions that act, or that nobody judged, also those that a macro calls."""
    seen: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in REFUSED:
            raise QueryError(f"the query calls {name}, which {REFUSED[name]}; leave it out: {WRITE_TO_DO_MORE}")
        if name in macros:
            waiting |= set(_functions_of(connection, macros[name])) - seen
        elif not is_harmless(name) and _is_of_duckdb(connection, name):
            raise QueryError(
                f"the query calls {name}, which DuckDB {duckdb.__version__} has and this version of tracetune does not "
                f"know; leave it out, or upgrade tracetune: {WRITE_TO_DO_MORE}"
            )


def _functions_of(connection: DuckDBPyConnection, query: str) -> Iterator[str]:
    """The names of all functions in a query, in lower case."""
    waiting: list[Any] = list(_trees(connection, query))
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
            name = item.get("function_name")
            if isinstance(name, str):
                yield name.lower()
                if name.lower() == "query":
                    waiting += _trees(connection, _text_of_query(item))


def _text_of_query(call: dict[str, Any]) -> str:
    """The statement in query('…'), which is a statement too."""
    # DuckDB 1.5 writes the first form, DuckDB 2 the second.
    match call.get("children") or call.get("arguments"):
        case [{"class": "CONSTANT", "value": {"value": str(text)}}]:
            return text
        case [{"expression": {"class": "CONSTANT", "literal": {"kind": "STRING", "text": str(text)}}}]:
            return text
        case _:
            raise QueryError("the query calls query() with a text that is computed; write the text out")


def _trees(connection: DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """The syntax tree of the one SELECT that a query is, in a list; that of an EXPLAIN is what it explains."""
    answer = _serialized(connection, query)
    if answer["error"] and (explained := _EXPLAIN.match(query)):
        ends = {explained.end(), explained.end() if explained["options"] is None else explained.start("options")}
        explanations = [_serialized(connection, query[end:]) for end in ends]
        answer = next((one for one in explanations if not one["error"]), answer)
    statements: list[dict[str, Any]] = answer.get("statements", [])
    if answer["error"] or len(statements) != 1:
        raise QueryError(_why_not_select(connection, query))
    return statements


def _serialized(connection: DuckDBPyConnection, query: str) -> dict[str, Any]:
    try:
        [(tree,)] = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
        answer: dict[str, Any] = orjson.loads(tree)
    except orjson.JSONDecodeError as error:
        raise QueryError("the query is nested too deep; make it simpler") from error
    except duckdb.Error as error:
        raise QueryError(reason_of(error)) from error
    return answer


def _why_not_select(connection: DuckDBPyConnection, query: str) -> str:
    """Why a query is not one SELECT, in a sentence."""
    try:
        kinds = [statement.type.name for statement in connection.extract_statements(query)]
    except duckdb.Error as error:
        return reason_of(error)
    if not kinds:
        return "the query is empty; give a statement, such as FROM rollouts"
    if kinds == ["CREATE", "SELECT"] and "PIVOT" in query.upper():
        return (
            "the query has a PIVOT whose columns are not named, for which DuckDB creates a type; name them: "
            "PIVOT … ON column IN ('a', 'b') …"
        )
    if len(kinds) > 1:
        return f"the query has {len(kinds)} statements; give one SELECT at a time: {WRITE_TO_DO_MORE}"
    # DuckDB takes a PRAGMA for a SELECT, and an EXPLAIN for an EXPLAIN of anything.
    kind = {"SELECT": "PRAGMA", "EXPLAIN": "EXPLAIN of no SELECT"}.get(kinds[0], kinds[0].replace("_", " "))
    return f"the query is {kind}, and only SELECT, or EXPLAIN of one, is sure to change nothing: {WRITE_TO_DO_MORE}"


def _macros(connection: DuckDBPyConnection) -> dict[str, str]:
    """The macros that the store's file defines, as SELECTs, by name; those of one name together."""
    found = connection.execute(
        "SELECT lower(function_name), function_type, macro_definition FROM duckdb_functions() WHERE NOT internal"
    ).fetchall()
    macros: dict[str, str] = {}
    for name, kind, definition in found:
        select = f"({definition})" if kind == "table_macro" else f"(SELECT ({definition}))"
        macros[name] = f"{macros[name]} UNION ALL {select}" if name in macros else f"FROM {select}"
    return macros


def _views(connection: DuckDBPyConnection) -> Iterator[tuple[str, str]]:
    """Each view that the store's file defines, with its SELECT."""
    found = connection.execute("SELECT schema_name, view_name, sql FROM duckdb_views() WHERE NOT internal").fetchall()
    for schema, view, sql in found:
        names = [_either(view), rf"{_either(schema)}\.{_either(view)}"]
        match = re.match(rf"CREATE VIEW (?:{'|'.join(names)}){_VIEW_COLUMNS}", sql)
        if match is None:
            raise QueryError(f"the view {view} of this store is not written as DuckDB writes one; drop the view")
        yield view, sql[match.end() :].rstrip().rstrip(";")


def _either(name: str) -> str:
    """A name in SQL, quoted or not, as a pattern."""
    doubled = name.replace('"', '""')
    return f'(?:{re.escape(name)}|"{re.escape(doubled)}")'


def _is_of_duckdb(connection: DuckDBPyConnection, name: str) -> bool:
    """Whether DuckDB has a function of that name; where it has none, its own error says more."""
    found = connection.execute("SELECT 1 FROM duckdb_functions() WHERE lower(function_name) = ? LIMIT 1", [name])
    return bool(found.fetchall())
