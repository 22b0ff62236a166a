-- Every call with its rollout's reward, or the reason why it cannot stand in a group.
-- A row keeps its place through all later stages: what leaves it out is its reason, and NULL means that it is still in.
-- In:  calls_in_scope, rollouts_earned
-- Out: call_id, rollout_id, run, split, step, example_id, module, key, invocation, turn, choice, started_at,
--      rollout_index, failed, reward, reason
SELECT
    call_id, rollout_id, made.run, made.split, made.step, made.example_id,
    module, key, invocation, turn, choice, started_at, rollout_index, failed, earned.reward,
    CASE
        WHEN kind <> 'call' THEN 'score_call'
        WHEN NOT list_contains($modules, module) THEN 'other_module'
        WHEN rollout_index IS NULL THEN 'no_rollout'
        WHEN earned.reason <> 'unscored' THEN earned.reason
        WHEN late THEN 'late'
        WHEN cached THEN 'cached'
        WHEN NOT exact AND completion IS NULL
            AND coalesce(finish_reason, '') NOT IN ('tool_calls', 'function_call', 'tool_call', 'tool_use')
            THEN 'no_completion'
        WHEN NOT exact AND status = 'error' AND completion = '' THEN 'no_completion'
        WHEN NOT exact AND truncated THEN 'truncated'
        WHEN NOT exact AND redacted THEN 'redacted'
        ELSE earned.reason
    END AS reason
FROM calls_in_scope AS made
LEFT JOIN rollouts_earned AS earned USING (rollout_id)
