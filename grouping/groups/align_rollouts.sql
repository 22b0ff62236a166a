-- What every rollout earned, or why none of its calls can stand in a group.
-- In:  rollouts
-- Out: rollout_id, run, split, step, example_id, rollout_index, failed, reward, reason
SELECT
    rollout_id, run, split, step, example_id,
    coalesce(rollout_index, 0) AS rollout_index,
    coalesce(status IN ('error', 'timeout', 'format_error'), false) AS failed,
    CASE
        WHEN status = 'format_error' THEN $format_reward
        WHEN status = 'error' AND list_contains($format_errors, error_type) THEN $format_reward
        WHEN status = 'error' AND list_contains($format_errors, split_part(error_type, '.', -1)) THEN $format_reward
        WHEN status IN ('error', 'timeout') THEN $failure_reward
        ELSE rollouts.reward
    END AS reward,
    CASE
        WHEN superseded THEN 'superseded'
        WHEN status = 'interrupted' THEN 'interrupted'
        WHEN status IS NULL THEN 'running'
        WHEN rollouts.reward IS NULL AND NOT failed THEN 'unscored'
    END AS reason
FROM rollouts
