-- Ragged modules cut to the shortest rollout: of a, a a a and a a, every rollout keeps its first.
-- Only rollouts that called the module count; a rollout's length is its last invocation plus one.
-- In:  $previous (calls)
-- Out: the same calls, with reason 'ragged' beyond the shortest rollout's length
WITH lengths AS (
    SELECT $cohort, module, key, rollout_id, max(invocation) + 1 AS length
    FROM $previous
    WHERE reason IS NULL
    GROUP BY ALL
),
bounds AS (
    SELECT rollout_id, module, key, min(length) OVER (PARTITION BY $cohort, module, key) AS shortest
    FROM lengths
)
SELECT calls.* REPLACE (
    CASE WHEN reason IS NULL AND invocation >= shortest THEN 'ragged' ELSE reason END AS reason
)
FROM $previous AS calls
LEFT JOIN bounds USING (rollout_id, module, key)
