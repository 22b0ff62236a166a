-- In: the rows after row `last_<table>` of spans and other_records, which are new; $events, the names of the
--     log records that messages come in
-- Out: logged(page, rollout_id, span_id, is_root, records): the LM calls that such records belong to, where
--      one of them or the span is new and the span itself says neither prompt nor answer; all records of
--      each, in order of time. The variables `logged_since` and `logged_until`: when those calls began.
--      logged_messages, empty, for what the records say.
CREATE OR REPLACE TEMP TABLE logged_requests AS
-- Apart, so that nothing is looked through where no record is new, and new spans alone where none of them is.
WITH with_new_records AS (
    SELECT trace_id, span_id, rollout_id, parent_span_id, started_at
    FROM spans
    SEMI JOIN (
        SELECT trace_id, span_id
        FROM other_records
        WHERE event_name IN $events AND rowid > getvariable('last_other_records')
    ) USING (trace_id, span_id)
    WHERE kind = 'lm'
),
new_spans AS (
    SELECT trace_id, span_id, rollout_id, parent_span_id, started_at
    FROM spans
    SEMI JOIN (SELECT trace_id, span_id FROM other_records WHERE event_name IN $events) USING (trace_id, span_id)
    WHERE kind = 'lm' AND rowid > getvariable('last_spans')
)
SELECT trace_id, span_id, rollout_id, bool_and(parent_span_id IS NULL) AS is_root,
       min(started_at) AS since, max(started_at) AS until
FROM (FROM with_new_records UNION ALL FROM new_spans)
GROUP BY trace_id, span_id, rollout_id;

SET VARIABLE logged_since = (SELECT min(since) FROM logged_requests);
SET VARIABLE logged_until = (SELECT max(until) FROM logged_requests);

CREATE OR REPLACE TEMP TABLE logged AS
WITH silent AS (
    SELECT logged_requests.*
    FROM logged_requests
    JOIN call_rows USING (rollout_id, span_id)
    WHERE choice = 0 AND (from_records OR messages IS NULL AND completion IS NULL)
      AND call_rows.started_at BETWEEN getvariable('logged_since') AND getvariable('logged_until')
)
SELECT row_number() OVER () // $page_rows AS page, rollout_id, span_id, is_root,
       list({'event_name': event_name, 'body': body, 'rest': rest} ORDER BY recorded_at, other_records.rowid) AS records
FROM silent
JOIN other_records USING (trace_id, span_id)
WHERE event_name IN $events
GROUP BY rollout_id, span_id, is_root;

DROP TABLE logged_requests;

CREATE OR REPLACE TEMP TABLE logged_messages (
    rollout_id VARCHAR, span_id VARCHAR, choice BIGINT, messages VARCHAR, completion VARCHAR, finish_reason VARCHAR,
    is_cut BOOLEAN, is_redacted BOOLEAN, prompt_id VARCHAR
);
