"""The quick way into the store for the tracer's own spans: what DuckDB reads of them, as SQL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import orjson

from tracetune.grouping.columns import FLAG, SPAN_ATTRIBUTES, SPANS, TEXT, TEXTS, WHOLE
from tracetune.grouping.scripts import template
from tracetune.tracer import names


def _of_type(type_: Any) -> dict[str, str]:
    return {column: name for column, name in SPAN_ATTRIBUTES.items() if SPANS.field(column).type == type_}


_TEXTS = {
    **_of_type(TEXT),
    "lm_parent": names.LM_PARENT,
    "call_kind": names.CALL_KIND,
    "input_messages": names.INPUT_MESSAGES,
    "output_messages": names.OUTPUT_MESSAGES,
}
_WHOLES = {**_of_type(WHOLE), "top_k": names.TOP_K, "max_tokens": names.MAX_TOKENS, "seed": names.SEED}
_REALS = {"temperature": names.TEMPERATURE, "top_p": names.TOP_P}
_FLAGS = _of_type(FLAG)
_LISTS = {**_of_type(TEXTS), "finish_reasons": names.FINISH_REASONS, "stop": names.STOP}
# Only an LM span has a column for these.
_OF_CALLS = {*_TEXTS, *_WHOLES, *_REALS, *_FLAGS, *_LISTS} - SPAN_ATTRIBUTES.keys()

# For each type: its columns; an attribute's value; and the lists, one entry an attribute, that it is taken from.
_TYPES: Mapping[str, tuple[Mapping[str, str], str, tuple[str, ...]]] = {
    "VARCHAR": (_TEXTS, "texts[{place}]", ("texts",)),
    "BIGINT": (_WHOLES, "wholes[{place}]", ("wholes",)),
    "DOUBLE": (_REALS, "coalesce(reals[{place}], wholes[{place}])", ("reals", "wholes")),
    "BOOLEAN": (_FLAGS, "flags[{place}]", ("flags",)),
    "VARCHAR[]": (_LISTS, "list_transform(arrays[{place}], lambda item: item.stringValue)", ("arrays",)),
}
# For each list: the member of an attribute's value that it has, that member in JSON, and its entry.
_LISTED = {
    "texts": ("stringValue", '"VARCHAR"', "attribute.value.stringValue"),
    "wholes": ("intValue", '"BIGINT"', "attribute.value.intValue"),
    "reals": ("doubleValue", '"DOUBLE"', "attribute.value.doubleValue"),
    "flags": ("boolValue", '"BOOLEAN"', "attribute.value.boolValue"),
    "arrays": ("arrayValue", '{"values": [{"stringValue": "VARCHAR"}]}', "attribute.value.arrayValue.values"),
}
_KNOWN = {name for columns, _, _ in _TYPES.values() for name in columns.values()}
# What one line in a hundred has is nearly always met in so many.
SAMPLED_LINES = 400


def attributes_of(lines: Any) -> frozenset[str]:
    """The attributes with a column in a sample of lines, from everywhere in their table."""
    found: set[str] = set()
    for place in range(0, len(lines), 1 + len(lines) // SAMPLED_LINES):
        with suppress(orjson.JSONDecodeError, KeyError, TypeError):
            found.update(attribute["key"] for attribute in orjson.loads(lines["line"][place].as_py())["attributes"])
    return frozenset(found & _KNOWN)


@lru_cache(maxsize=64)
def calls_sql(attributes: frozenset[str]) -> str:
    """The SELECT that reads `lines` as LM calls: what `spans_sql` gives, and their messages."""
    return template("ingest", "decode_calls").substitute(spans=spans_sql(attributes, is_lm=True))


@lru_cache(maxsize=64)
def spans_sql(attributes: frozenset[str], *, is_lm: bool = False) -> str:
    """The SELECT that reads `lines` as spans: the columns of `spans`, what else calls need, and `is_plain`.

    Args:
        attributes: a span with others is not plain. To look for one by its name costs something in
            every line, so those that no line has are better left out.
        is_lm: whether these should be LM calls, or none.
    """
    columns: dict[str, str] = {}
    taken: list[str] = []
    lists: set[str] = set()
    for type_, (names_of, value, taken_from) in _TYPES.items():
        for column, name in names_of.items():
            if name in attributes and (is_lm or column not in _OF_CALLS):
                columns[column] = value.format(place=f"list_position(names, '{name}')")
                taken.append(column)
                lists.update(taken_from)
            else:
                columns[column] = f"NULL::{type_}"
    listed = {name: _LISTED[name] for name in sorted(lists)}
    return template("ingest", "decode_spans").substitute(
        value="{" + ", ".join(f'"{member}": {shape}' for member, shape, _ in listed.values()) + "}",
        lists=",\n           ".join(
            f"list_transform(span.attributes, lambda attribute: {entry}) AS {name}"
            for name, (_, _, entry) in listed.items()
        ),
        columns=",\n           ".join(f"{value} AS {column}" for column, value in columns.items()),
        n_taken=" + ".join(f"({column} IS NOT NULL)::INTEGER" for column in taken),
        is_lm=str(is_lm).lower(),
    )
