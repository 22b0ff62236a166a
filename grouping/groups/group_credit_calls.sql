-- The rollouts that a credit function is asked about, and all their calls in the order they were made.
-- In:  calls, rollouts, aligned_calls
-- Out: one row a call: the columns of types.Rollout as rollout_*, those of types.Call, wanted
SELECT
    rollouts.rollout_id, rollouts.example_id, rollouts.run, rollouts.split, rollouts.step, rollout_index, program,
    rollouts.status AS rollout_status, error_type, output, rollouts.reward AS rollout_reward,
    rollouts.duration_ms AS rollout_duration_ms, rollouts.policy_version AS rollout_policy_version,
    calls.call_id, calls.module, calls.key, calls.invocation, calls.turn, calls.choice, messages, completion,
    finish_reason, response_id, calls.status,
    wanted.call_id IS NOT NULL AS wanted
FROM rollouts
JOIN calls USING (rollout_id)
LEFT JOIN (SELECT call_id FROM aligned_calls WHERE reason IS NULL AND NOT failed) AS wanted USING (call_id)
WHERE rollouts.rollout_id IN (SELECT rollout_id FROM aligned_calls WHERE reason IS NULL AND NOT failed)
ORDER BY rollouts.rollout_id, calls.started_at, calls.invocation, calls.turn, calls.choice, calls.call_id
