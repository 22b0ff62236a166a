-- The quick way for the tracer's own lines: one span a line, attributes that all have a column,
-- messages that are plain text. Every other line is left to the decoder in Python, which
-- means the same by them; a test holds the two against each other.
-- In: lines(number, stretch, line), where a line is the span alone of the scope `tracetune`;
--     whether they should be LM calls or the others
-- Out: number, the columns of `spans` with the stretch in place of the resource, what else a call
--      needs, is_plain
WITH documents AS (
    SELECT number, stretch, try(from_json(line, '{
               "traceId": "VARCHAR", "spanId": "VARCHAR", "parentSpanId": "VARCHAR", "name": "VARCHAR",
               "startTimeUnixNano": "BIGINT", "endTimeUnixNano": "BIGINT",
               "attributes": [{"key": "VARCHAR", "value": $value}],
               "events": "VARCHAR", "links": "JSON", "status": {"code": "VARCHAR", "message": "VARCHAR"}
           }')) AS span
    FROM lines
),
attributes AS (
    SELECT number, stretch, span,
           list_transform(span.attributes, lambda attribute: attribute.key) AS names,
           $lists
    FROM documents
),
columns_of AS (
    SELECT number, stretch, span, len(names) AS n_attributes,
           $columns
    FROM attributes
)
SELECT number,
       span.traceId AS trace_id, span.spanId AS span_id, nullif(span.parentSpanId, '') AS parent_span_id,
       span.name AS name, kind,
       make_timestamp_ns(span.startTimeUnixNano) AS started_at,
       make_timestamp_ns(span.endTimeUnixNano) AS ended_at,
       coalesce(nullif(status, ''), CASE WHEN span.status.code = '2' THEN 'error' ELSE 'ok' END) AS status,
       error_type, run, split, step, coalesce(nullif(rollout_id, ''), span.traceId) AS rollout_id, example_id, policy_version,
       module, key, execution, recorded_invocation, recorded_turn, unordered, late, truncated, redacted, input, output,
       operation, provider, request_model, response_model, response_id, input_tokens, output_tokens, choice_count,
       NULL::VARCHAR AS attributes, nullif(span.events, '[]') AS events,
       stretch, 'tracetune' AS scope,
       lm_parent, call_kind, input_messages, output_messages, finish_reasons,
       temperature, top_p, top_k, max_tokens, seed, stop,
       coalesce(
           span.links IS NULL AND span.status.message IS NULL
           AND span.traceId <> '' AND span.spanId <> '' AND span.name IS NOT NULL
           AND span.startTimeUnixNano IS NOT NULL AND span.endTimeUnixNano IS NOT NULL
           AND n_attributes = $n_taken
           AND kind <> '' AND (kind = 'lm') = $is_lm
           -- The example of a root without one is a hash, which Python takes.
           AND (example_id IS NOT NULL OR nullif(span.parentSpanId, '') IS NOT NULL OR input IS NULL),
           false
       ) AS is_plain
FROM columns_of
