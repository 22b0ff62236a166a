-- Strict: a module that some rollout of the example never called is left out for that example.
-- In:  $previous (calls), rollouts_in_scope
-- Out: the same calls, with reason 'missing' where it applies
WITH participants AS (
    -- Rollouts that earned something; also those whose calls have scores of their own.
    SELECT rollout_id, $cohort, count(*) OVER (PARTITION BY $cohort) AS n_rollouts
    FROM rollouts_in_scope
    WHERE reason IS NULL OR rollout_id IN (SELECT rollout_id FROM $previous WHERE reason IS NULL)
),
callers AS (
    SELECT DISTINCT rollout_id, module
    FROM $previous
    WHERE reason IS NULL
),
coverage AS (
    SELECT rollout_id, module, n_rollouts, count(*) OVER (PARTITION BY $cohort, module) AS n_callers
    FROM callers
    JOIN participants USING (rollout_id)
)
SELECT calls.* REPLACE (
    CASE WHEN reason IS NULL AND n_callers < n_rollouts THEN 'missing' ELSE reason END AS reason
)
FROM $previous AS calls
LEFT JOIN coverage USING (rollout_id, module)
