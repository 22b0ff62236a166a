-- Whole rollouts as units: a rollout's calls become one row, which earns the mean of what they earned.
-- In:  $previous (calls)
-- Out: one row a rollout in place of its calls; calls that are left out stay rows of their own
SELECT
    min_by(call_id, (invocation, turn, choice, call_id)) AS call_id,
    rollout_id, run, split, step, example_id,
    0 AS invocation, 0 AS turn, 0 AS choice, rollout_index,
    -- The mean of equal numbers can differ from them in the last bit, and would look like spread.
    CASE WHEN min(reward) = max(reward) THEN min(reward) ELSE list_avg(list_sort(list(reward))) END AS reward,
    reason
FROM $previous
WHERE reason IS NULL
GROUP BY ALL
UNION ALL BY NAME
SELECT call_id, rollout_id, run, split, step, example_id, invocation, turn, choice, rollout_index, reward, reason
FROM $previous
WHERE reason IS NOT NULL
