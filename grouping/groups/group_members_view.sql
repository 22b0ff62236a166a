-- The public view `group_members`.
-- In:  aligned_members
SELECT group_id, slot, call_id, rollout_id, reward, advantage
FROM aligned_members
WHERE reason IS NULL
