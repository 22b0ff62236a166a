-- All that a trainer needs of each member, in the order of groups and slots.
-- In:  group_keys, aligned_members, calls
-- Out: trajectory, call_id, rollout_id, reward, advantage, and the member's columns of calls
SELECT
    trajectory, call_id, members.rollout_id, members.reward, advantage,
    calls.module, messages, prompt_token_ids, completion_token_ids, completion_logprobs, completion,
    finish_reason, sampling, policy_version, on_policy, redacted
FROM group_keys
JOIN aligned_members AS members USING (group_no)
JOIN calls USING (call_id)
ORDER BY place, slot
