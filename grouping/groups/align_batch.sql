-- Advantages over the whole batch: every group is measured by the mean and the spread of all rewards that were kept.
-- In:  $previous (groups, measured)
-- Out: the same groups, with the batch's baseline and scale
WITH kept AS (
    SELECT list_sort(flatten(list([member.reward FOR member IN members]))) AS rewards
    FROM $previous
    WHERE reason IS NULL
),
batch AS (
    SELECT rewards[1] < rewards[-1] AS varies, list_avg(rewards) AS mean, list_stddev_samp(rewards) AS std
    FROM kept
)
SELECT groups.* REPLACE (batch.varies AS varies, mean AS baseline, std + $eps AS scale)
FROM $previous AS groups
CROSS JOIN batch
