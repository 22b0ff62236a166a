-- Everything that is in no group, once: rollouts, groups, calls.
-- In:  aligned_groups, aligned_members, left_out_calls, rollouts_in_scope
-- Out: kind, id, reason
SELECT 'rollout' AS kind, rollout_id AS id, coalesce(reason, 'no_calls') AS reason
FROM rollouts_in_scope
WHERE (reason IS NOT NULL OR n_calls = 0)
  AND rollout_id NOT IN (SELECT rollout_id FROM aligned_members WHERE reason IS NULL)
UNION ALL
SELECT 'group', group_id, reason
FROM aligned_groups
WHERE reason IN ('missing', 'ragged', 'constant', 'singleton')
UNION ALL
SELECT 'call', call_id, reason
FROM left_out_calls
ORDER BY kind DESC, id, reason
