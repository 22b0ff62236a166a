-- What a group's rewards are measured by: an advantage is (reward - baseline) / scale, and 0 where nothing varies.
-- Rewards are sorted before they are added up, so that the order of rows cannot move the last bit of a mean.
-- In:  $previous (groups)
-- Out: the key, reason, members, size, reward_mean, reward_std, varies, baseline, scale
WITH rewarded AS (
    SELECT *, len(members) AS size, list_sort([member.reward FOR member IN members]) AS rewards
    FROM $previous
),
measured AS (
    SELECT
        * EXCLUDE (rewards),
        rewards[1] < rewards[-1] AS varies,
        CASE WHEN varies THEN list_avg(rewards) ELSE rewards[1] END AS reward_mean,
        CASE WHEN varies THEN list_stddev_samp(rewards) WHEN size > 1 THEN 0.0 END AS reward_std
    FROM rewarded
)
SELECT
    * REPLACE (
        CASE
            WHEN reason IS NOT NULL OR varies OR NOT $drop_constant THEN reason
            WHEN size > 1 THEN 'constant'
            WHEN $advantage <> 'batch' THEN 'singleton'
        END AS reason
    ),
    reward_mean AS baseline,
    CASE $advantage
        WHEN 'grpo' THEN reward_std + $eps
        WHEN 'centered' THEN 1.0
        WHEN 'rloo' THEN (size - 1) / size
    END AS scale
FROM measured
