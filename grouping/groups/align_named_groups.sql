-- The groups with their ids.
-- In:  $previous (groups, measured)
-- Out: group_id, the key, reason, members, size, reward_mean, reward_std, varies, baseline, scale
SELECT $group_id AS group_id, *
FROM $previous
