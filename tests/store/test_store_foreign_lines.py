"""Lines of others: many spans each, fields that the tracer never writes, and one bad span among good ones."""

from __future__ import annotations

import orjson
from store.spool_lines import START, write_segment

from tracetune.grouping import Store
from tracetune.tracer import names


def a_span(number, **fields):
    """One span in OTLP/JSON."""
    return {
        "traceId": f"{number:032x}",
        "spanId": f"{number:016x}",
        "name": f"span {number}",
        "startTimeUnixNano": str(START),
        "endTimeUnixNano": str(START + 1),
        **fields,
    }


def a_line(*spans, scope="a library", **more):
    """One line with those spans, of one scope."""
    document = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": scope, **more}, "spans": list(spans)}]}]}
    return orjson.dumps(document) + b"\n"


def test_one_span_that_cannot_be_read_leaves_its_neighbours(tmp_path):
    """Of a line with three spans, the one without a start and the one with a step that is text are set aside."""
    path = tmp_path / "traces.duckdb"
    bad = a_span(2)
    del bad["startTimeUnixNano"]
    wrong = a_span(3, attributes=[{"key": names.STEP, "value": {"stringValue": "three"}}])
    write_segment(path, "1-1-a", a_line(a_span(1), bad), a_line(wrong, a_span(4), a_span(5), scope="tracetune"))
    report = Store(path).ingest()
    assert (report.spans, report.rejected) == (3, 2)
    rows = Store(path).sql("SELECT name FROM spans ORDER BY name").rows()
    assert [row["name"] for row in rows] == ["span 1", "span 4", "span 5"]
    lines = (path.with_name(path.name + ".spool") / "rejected.jsonl").read_bytes().splitlines()
    aside = [orjson.loads(orjson.loads(line)["line"]) for line in lines]
    assert [part["resourceSpans"][0]["scopeSpans"][0]["spans"] for part in aside] == [[bad], [wrong]]


def test_what_a_row_has_no_column_for_is_kept_in_one_order(tmp_path):
    """Kind, status OK, further fields and the version of the scope stand among the attributes, in one order."""
    path = tmp_path / "traces.duckdb"
    fields = {"traceState": "a=b", "flags": 256, "kind": 3, "status": {"code": 1}, "droppedAttributesCount": 2}
    write_segment(path, "1-1-a", a_line(a_span(1, **fields), version="1.0"))
    write_segment(path, "2-1-a", a_line(a_span(1, **dict(reversed(fields.items()))), version="1.0"))
    report = Store(path).ingest()
    assert (report.spans, report.repeated, report.conflicting) == (1, 1, 0)
    [row] = Store(path).sql("SELECT attributes, scope, status FROM spans").rows()
    assert row == {
        "attributes": '{"otlp.droppedAttributesCount":2,"otlp.flags":256,"otlp.traceState":"a=b",'
        '"otlp.kind":3,"otlp.status.code":1,"otlp.scope":{"version":"1.0"}}',
        "scope": "a library",
        "status": "ok",
    }


def test_the_kind_that_goes_without_saying_is_not_kept(tmp_path):
    """A span within a process, or of no kind, and one of the tracer's own have nothing among their attributes."""
    path = tmp_path / "traces.duckdb"
    lines = [a_line(a_span(1, kind=1), a_span(2, kind=0), a_span(3)), a_line(a_span(4, kind=3), scope="tracetune")]
    write_segment(path, "1-1-a", *lines)
    Store(path).ingest()
    assert Store(path).sql("SELECT DISTINCT attributes FROM spans").rows() == [{"attributes": None}]
