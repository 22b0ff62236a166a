-- In: selected(rollout_id, run), the rollouts to export, and {condition}, which says whether a span is of
--     them; a page of `spans`: those from the key ($started_at, $trace_id, $span_id) on, and before the
--     key ($started_at_after, $trace_id_after, $span_id_after) where there is another page; call_rows
-- Out: the columns of `spans`, times in nanoseconds, with `calls`, what only `call_rows` has of an LM
--      span; in order of time. What log records say of a call leaves with them.
WITH {selected},
page AS (
    SELECT *
    FROM spans
    -- By time, as a store grows: what lies outside the page's time is not read.
    WHERE started_at BETWEEN make_timestamp_ns($started_at) AND coalesce(make_timestamp_ns($started_at_after), 'infinity')
      AND (epoch_ns(started_at) > $started_at
           OR trace_id > $trace_id
           OR trace_id = $trace_id AND span_id >= $span_id)
      AND ($started_at_after IS NULL
           OR epoch_ns(started_at) < $started_at_after
           OR trace_id < $trace_id_after
           OR trace_id = $trace_id_after AND span_id < $span_id_after)
      AND {condition}
),
calls_of AS (
    SELECT rollout_id, span_id,
           list({
               'lm_parent': lm_parent, 'kind': kind,
               'messages': CASE WHEN NOT from_records THEN messages END,
               'completion': CASE WHEN NOT from_records THEN completion END,
               'finish_reason': finish_reason, 'sampling': sampling
           } ORDER BY choice) AS calls
    FROM call_rows
    SEMI JOIN page USING (rollout_id, span_id)
    WHERE started_at BETWEEN make_timestamp_ns($started_at) AND coalesce(make_timestamp_ns($started_at_after), 'infinity')
    GROUP BY ALL
)
SELECT page.* REPLACE (epoch_ns(started_at) AS started_at, epoch_ns(ended_at) AS ended_at), calls
FROM page
LEFT JOIN calls_of USING (rollout_id, span_id)
ORDER BY started_at, trace_id, span_id;
