-- The groups of a batch, in the order of their keys.
-- In:  aligned_groups, aligned_members
-- Out: the key, group_no, n_members (calls: a trajectory has several), place
SELECT
    $group_key, group_no, n_members,
    row_number() OVER (ORDER BY $group_key) AS place
FROM aligned_groups
JOIN (SELECT group_no, count(*) AS n_members FROM aligned_members GROUP BY group_no)
    ON aligned_groups.rowid = group_no
WHERE reason IS NULL
