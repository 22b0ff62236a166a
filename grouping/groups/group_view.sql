-- The public view `groups`.
-- In:  aligned_groups
SELECT
    group_id, run, split, step, example_id, module, key, invocation, turn, size,
    len(list_distinct([member.rollout_id FOR member IN members])) AS n_rollouts,
    reward_mean, reward_std
FROM aligned_groups
WHERE reason IS NULL
