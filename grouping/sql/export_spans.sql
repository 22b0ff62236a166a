-- In: selected(rollout_id, run), the rollouts to export, and {condition}, which says whether a span is of
--     them; a page of `spans`: those from the key ($trace_id, $started_at, $span_id) on, and before the
--     key ($trace_id_after, $started_at_after, $span_id_after) where there is another page; call_rows
-- Out: the columns of `spans`, times in nanoseconds, with `calls`, what only `call_rows` has of an LM
--      span; in order of trace, then of time
WITH {selected},
page AS (
    SELECT *
    FROM spans
    WHERE trace_id >= $trace_id
      AND (trace_id > $trace_id
           OR epoch_ns(started_at) > $started_at
           OR epoch_ns(started_at) = $started_at AND span_id >= $span_id)
      AND ($trace_id_after IS NULL
           OR trace_id < $trace_id_after
           OR trace_id = $trace_id_after
              AND (epoch_ns(started_at) < $started_at_after
                   OR epoch_ns(started_at) = $started_at_after AND span_id < $span_id_after))
      AND {condition}
),
calls_of AS (
    SELECT rollout_id, span_id,
           list({
               'lm_parent': lm_parent, 'kind': kind, 'messages': messages, 'completion': completion,
               'finish_reason': finish_reason, 'sampling': sampling
           } ORDER BY choice) AS calls
    FROM call_rows
    SEMI JOIN page USING (rollout_id, span_id)
    GROUP BY ALL
)
SELECT page.* REPLACE (epoch_ns(started_at) AS started_at, epoch_ns(ended_at) AS ended_at), calls
FROM page
LEFT JOIN calls_of USING (rollout_id, span_id)
ORDER BY trace_id, started_at, span_id;
