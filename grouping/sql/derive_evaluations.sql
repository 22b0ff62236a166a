-- In: touched(rollout_id); spans with their events; other_records; call_rows
-- Out: a row of scores for each gen_ai.evaluation.result with a finite value, an event of a
--      span or a record of its own: of the call where its span is one, else of the span's
--      rollout. A record waits for its span. The rollouts that were scored are touched too.
CREATE OR REPLACE TEMP TABLE evaluations AS
WITH recorded AS (
    SELECT record_id, recorded_at, rest::JSON AS said,
           rest->>'$."otlp.traceId"' AS trace_id, rest->>'$."otlp.spanId"' AS span_id,
           rest->>'$."gen_ai.response.id"' AS response_id
    FROM other_records
    WHERE event_name = 'gen_ai.evaluation.result' AND record_id NOT IN (SELECT record_id FROM scores WHERE source = 'otel')
),
event_list AS (
    SELECT trace_id, span_id, started_at, unnest(from_json(events, '["JSON"]')) AS event
    FROM spans
    WHERE contains(events, '"gen_ai.evaluation.result"') AND rollout_id IN (FROM touched)
),
events AS (
    SELECT trace_id, span_id, md5(concat_ws('/', trace_id, span_id, event)) AS record_id,
           coalesce(make_timestamp_ns(try_cast(event->>'timeUnixNano' AS BIGINT)), started_at) AS recorded_at,
           json_group_object(
               attribute->>'key',
               -- A value has one member, named for its type.
               attribute->'value'->(json_keys(attribute->'value')[1])
           ) AS said
    FROM (SELECT *, unnest(from_json(event->'attributes', '["JSON"]')) AS attribute FROM event_list)
    WHERE event->>'name' = 'gen_ai.evaluation.result'
    GROUP BY ALL
),
told AS (
    SELECT record_id, recorded_at, said, trace_id, span_id, response_id FROM recorded
    UNION ALL
    SELECT record_id, recorded_at, said, trace_id, span_id, NULL
    FROM events
    WHERE record_id NOT IN (SELECT record_id FROM scores WHERE source = 'otel')
),
placed AS (
    SELECT told.*, spans.rollout_id, CASE WHEN spans.kind = 'lm' THEN spans.span_id END AS call_id
    FROM told
    JOIN spans USING (trace_id, span_id)
    UNION ALL
    -- Without a span, the response tells which call is meant.
    SELECT told.*, call_rows.rollout_id, call_rows.call_id
    FROM told
    JOIN call_rows ON call_rows.response_id = told.response_id AND choice = 0 AND NOT shadowed
    WHERE told.span_id IS NULL
)
SELECT DISTINCT ON (record_id) record_id, recorded_at, rollout_id, call_id,
       coalesce(said->>'$."gen_ai.evaluation.name"', 'evaluation') AS name,
       try_cast(said->>'$."gen_ai.evaluation.score.value"' AS DOUBLE) AS value,
       'otel' AS source,
       said->>'$."gen_ai.evaluation.explanation"' AS feedback,
       nullif(json_merge_patch(said, '{
           "gen_ai.evaluation.name": null, "gen_ai.evaluation.score.value": null,
           "gen_ai.evaluation.explanation": null, "otlp.traceId": null, "otlp.spanId": null
       }')::VARCHAR, '{}') AS rest
FROM placed
WHERE isfinite(try_cast(said->>'$."gen_ai.evaluation.score.value"' AS DOUBLE))
ORDER BY record_id, rollout_id, call_id;

INSERT INTO scores BY NAME FROM evaluations;

INSERT INTO touched SELECT DISTINCT rollout_id FROM evaluations WHERE rollout_id NOT IN (FROM touched);

DROP TABLE evaluations;
