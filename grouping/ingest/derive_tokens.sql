-- In: touched(rollout_id); call_rows; completions
-- Out: which completion each call was, by the call id that the request carried, else by
--      response id and choice; of a request that was sent twice, the answer the client saw
CREATE OR REPLACE TEMP TABLE claims AS
WITH asked AS (
    SELECT rollout_id, call_id, span_id, choice, response_id
    FROM call_rows
    WHERE rollout_id IN (FROM touched) AND started_at >= getvariable('since')
),
candidates AS (
    SELECT asked.rollout_id, asked.call_id, completion_key, recorded_at, true AS by_call
    FROM asked
    JOIN completions ON completions.call_id = asked.span_id AND completions.choice = asked.choice
    WHERE asked.response_id IS NULL OR asked.response_id = completions.response_id
    UNION ALL
    SELECT asked.rollout_id, asked.call_id, completion_key, recorded_at, false
    FROM asked
    JOIN completions ON completions.response_id = asked.response_id AND completions.choice = asked.choice
),
chosen AS (
    SELECT rollout_id, call_id, arg_max(completion_key, (by_call, recorded_at, completion_key)) AS completion_key
    FROM candidates
    GROUP BY ALL
)
SELECT rollout_id, chosen.call_id, completion_key, exact, on_policy
FROM chosen
JOIN completions USING (completion_key);

UPDATE call_rows SET completion_key = claims.completion_key, exact = claims.exact, on_policy = claims.on_policy
FROM claims
WHERE call_rows.started_at >= getvariable('since')
  AND call_rows.rollout_id = claims.rollout_id AND call_rows.call_id = claims.call_id
  AND call_rows.completion_key IS DISTINCT FROM claims.completion_key;

DROP TABLE claims;
