-- The rollouts that a condition over calls speaks of: those with a call in scope, and those that made no call at all
-- and for which the condition holds of a call that has their run, split, step and example and nothing else.
-- In:  rollouts, rollouts_earned, calls, calls_in_scope; $where
-- Out: the columns of rollouts_earned, n_calls (in scope)
WITH called AS (
    SELECT rollout_id, count(*) AS n_calls
    FROM calls_in_scope
    GROUP BY rollout_id
),
silent AS (
    SELECT rollout_id, run, split, step, example_id, policy_version
    FROM rollouts
    ANTI JOIN calls USING (rollout_id)
    UNION ALL BY NAME
    FROM calls
    WHERE false
)
SELECT rollouts_earned.*, coalesce(n_calls, 0) AS n_calls
FROM rollouts_earned
LEFT JOIN called USING (rollout_id)
WHERE n_calls > 0 OR rollout_id IN (SELECT rollout_id FROM silent WHERE (
    $where
))
