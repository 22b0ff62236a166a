-- Everything that is in no group, once: rollouts, groups, calls.
-- In:  aligned_groups, aligned_members, rollouts_in_scope
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
-- A call that fills other groups may have been left out of several, for different reasons.
SELECT 'call', call_id, min(reason)
FROM aligned_members
WHERE reason IS NOT NULL
  AND call_id NOT IN (SELECT call_id FROM aligned_members WHERE reason IS NULL)
GROUP BY call_id
ORDER BY kind DESC, id, reason
