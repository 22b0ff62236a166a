-- In: the rows after row `last_<table>` of spans, other_records and call_rows, which are new
-- Out: a row of scores for each gen_ai.evaluation.result with a finite value, an event of a
--      span or a record of its own: of the call where its span is one, else of the span's
--      rollout. A record waits for its span; the scores are new rows like any other.
INSERT INTO scores BY NAME
WITH settled AS (
    SELECT record_id FROM scores WHERE source = 'otel'
),
records AS (
    SELECT record_id, recorded_at, rest::JSON AS said, rowid > getvariable('last_other_records') AS is_new,
           trace_id, span_id, rest->>'$."gen_ai.response.id"' AS response_id
    FROM other_records
    ANTI JOIN settled USING (record_id)
    WHERE event_name = 'gen_ai.evaluation.result'
),
new_events AS (
    SELECT trace_id, span_id, rollout_id, kind, started_at, unnest(from_json(events, '["JSON"]')) AS event
    FROM spans
    WHERE rowid > getvariable('last_spans') AND contains(events, '"gen_ai.evaluation.result"')
),
new_attributes AS (
    SELECT *, unnest(from_json(event->'attributes', '["JSON"]')) AS attribute
    FROM new_events
    WHERE event->>'name' = 'gen_ai.evaluation.result'
),
of_events AS (
    SELECT md5(concat_ws('/', trace_id, span_id, event)) AS record_id,
           coalesce(make_timestamp_ns(try_cast(event->>'timeUnixNano' AS BIGINT)), started_at) AS recorded_at,
           -- A value has one member, named for its type.
           json_group_object(
               attribute->>'key', attribute->'value'->(json_keys(attribute->'value')[1])
           ) AS said,
           rollout_id, CASE WHEN kind = 'lm' THEN span_id END AS call_id
    FROM new_attributes
    GROUP BY trace_id, span_id, event, started_at, rollout_id, kind
),
of_records AS (
    SELECT record_id, recorded_at, said, spans.rollout_id, CASE WHEN spans.kind = 'lm' THEN spans.span_id END AS call_id
    FROM records
    JOIN spans USING (trace_id, span_id)
    WHERE spans.rowid > getvariable('last_spans')
    UNION
    SELECT record_id, recorded_at, said, spans.rollout_id, CASE WHEN spans.kind = 'lm' THEN spans.span_id END
    FROM (FROM records WHERE is_new) AS records
    JOIN spans USING (trace_id, span_id)
    UNION
    -- Without a span, the response tells which call is meant.
    SELECT record_id, recorded_at, said, call_rows.rollout_id, call_rows.call_id
    FROM (FROM records WHERE span_id IS NULL) AS records
    JOIN call_rows ON call_rows.response_id = records.response_id AND choice = 0
    WHERE is_new OR call_rows.rowid > getvariable('last_call_rows')
),
evaluations AS (
    SELECT * FROM of_events ANTI JOIN settled USING (record_id)
    UNION ALL
    SELECT * FROM of_records
)
SELECT DISTINCT ON (record_id) record_id, recorded_at, rollout_id, call_id,
       coalesce(said->>'$."gen_ai.evaluation.name"', 'evaluation') AS name,
       try_cast(said->>'$."gen_ai.evaluation.score.value"' AS DOUBLE) AS value,
       'otel' AS source,
       said->>'$."gen_ai.evaluation.explanation"' AS feedback,
       nullif(json_merge_patch(said, '{
           "gen_ai.evaluation.name": null, "gen_ai.evaluation.score.value": null,
           "gen_ai.evaluation.explanation": null
       }')::VARCHAR, '{}') AS rest
FROM evaluations
WHERE isfinite(try_cast(said->>'$."gen_ai.evaluation.score.value"' AS DOUBLE))
ORDER BY record_id, rollout_id, call_id;
