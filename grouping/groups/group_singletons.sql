-- Groups of one, kept or not: nothing can be learned from them by comparison.
-- In:  aligned_groups
-- Out: group_id
SELECT group_id
FROM aligned_groups
WHERE size = 1 AND NOT varies AND (reason IS NULL OR reason = 'singleton')
ORDER BY group_id
