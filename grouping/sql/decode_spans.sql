-- The quick way for the tracer's own lines: one span a line, attributes that all have a column,
-- messages that are plain text. Every other line is left to the decoder in Python, which
-- means the same by them; a test holds the two against each other.
-- In: lines(number, line), where a line is the span alone of the scope
--     `tracetune`; $$resource of them all
-- Out: plain_spans(number, the columns of `spans`, chat, answers, what else a call needs)
CREATE OR REPLACE TEMP TABLE plain_spans AS
WITH documents AS (
    SELECT number, try(from_json(line, '$shape')) AS span
    FROM lines
),
attributes AS (
    SELECT number, span,
           list_transform(span.attributes, lambda attribute: attribute.key) AS names,
           list_transform(span.attributes, lambda attribute: attribute.value.stringValue) AS texts,
           list_transform(span.attributes, lambda attribute: attribute.value.intValue) AS wholes,
           list_transform(span.attributes, lambda attribute: attribute.value.doubleValue) AS reals,
           list_transform(span.attributes, lambda attribute: attribute.value.boolValue) AS flags,
           list_transform(span.attributes, lambda attribute: attribute.value.arrayValue.values) AS arrays
    FROM documents
),
columns_of AS (
    SELECT number, span, len(names) AS n_attributes,
           $columns
    FROM attributes
),
read AS (
    SELECT *,
           try(from_json(input_messages, '[{
               "role": "VARCHAR", "parts": [{"type": "VARCHAR", "content": "VARCHAR"}]
           }]')) AS asked,
           try(from_json(output_messages, '[{
               "role": "VARCHAR", "parts": [{"type": "VARCHAR", "content": "VARCHAR"}], "finish_reason": "VARCHAR"
           }]')) AS answered
    FROM columns_of
)
SELECT number,
       span.traceId AS trace_id, span.spanId AS span_id, nullif(span.parentSpanId, '') AS parent_span_id,
       span.name AS name, kind,
       make_timestamp_ns(span.startTimeUnixNano) AS started_at,
       make_timestamp_ns(span.endTimeUnixNano) AS ended_at,
       coalesce(nullif(status, ''), CASE WHEN span.status.code = '2' THEN 'error' ELSE 'ok' END) AS status,
       error_type, run, split, step, coalesce(nullif(rollout_id, ''), span.traceId) AS rollout_id, example_id, policy_version,
       module, key, execution, recorded_invocation, recorded_turn, unordered, late, truncated, input, output,
       operation, provider, request_model, response_model, response_id, input_tokens, output_tokens, choice_count,
       NULL::VARCHAR AS attributes, nullif(span.events, '[]') AS events, $$resource AS resource,
       'tracetune' AS scope,
       lm_parent, coalesce(nullif(call_kind, ''), 'call') AS call_kind,
       to_json(list_transform(asked, lambda message: {
           'role': message.role, 'content': message.parts[1].content
       }))::VARCHAR AS messages,
       list_transform(answered, lambda message: message.parts[1].content) AS completions,
       list_transform(answered, lambda message, place: coalesce(
           nullif(message.finish_reason, ''), nullif(finish_reasons[place], '')
       )) AS finish_reasons,
       nullif('{' || concat_ws(
           ',', '"temperature":' || to_json(temperature), '"top_p":' || to_json(top_p), '"top_k":' || top_k,
           '"max_tokens":' || max_tokens, '"seed":' || seed, '"stop":' || to_json(stop)
       ) || '}', '{}') AS sampling,
       coalesce(
           span.links IS NULL AND span.status.message IS NULL
           AND span.traceId <> '' AND span.spanId <> '' AND span.name IS NOT NULL
           AND span.startTimeUnixNano IS NOT NULL AND span.endTimeUnixNano IS NOT NULL
           AND n_attributes = $n_taken
           AND kind <> ''
           -- The example of a root without one is a hash, which Python takes.
           AND (example_id IS NOT NULL OR nullif(span.parentSpanId, '') IS NOT NULL OR input IS NULL)
           AND (len(answered) > 0 OR finish_reasons IS NULL)
           -- Texts and nothing but texts: written again they are what was recorded.
           AND to_json(asked)::VARCHAR IS NOT DISTINCT FROM input_messages
           AND to_json(answered)::VARCHAR IS NOT DISTINCT FROM output_messages
           AND coalesce(len(list_filter(asked, lambda message: len(message.parts) <> 1 OR message.parts[1].type <> 'text')), 0) = 0
           AND coalesce(len(list_filter(answered, lambda message: len(message.parts) <> 1 OR message.parts[1].type <> 'text')), 0) = 0,
           false
       ) AS is_plain
FROM read;
