-- One row a member, with its advantage; rows that were left out carry their reason in place of one.
-- In:  aligned_groups; $group_no tells its rows apart where a batch must: a kept group and what it left out share an id
-- Out: group_no, group_id, slot, trajectory, call_id, rollout_id, reward, advantage, reason
WITH members AS (
    SELECT
        $group_no AS group_no, group_id, reason, baseline, scale, varies,
        generate_subscripts(members, 1) - 1 AS slot,
        unnest(members) AS member
    FROM aligned_groups
)
SELECT
    group_no, group_id, slot, slot AS trajectory, member.call_id, member.rollout_id, member.reward,
    CASE
        WHEN reason IS NOT NULL THEN NULL
        WHEN varies THEN (member.reward - baseline) / scale
        ELSE 0.0
    END AS advantage,
    reason
FROM members
