-- At most $size members a group, and exactly so many with repeat.
-- diverse: ranked by reward, best first and ties in the members' order, then places evenly spread over the ranks.
-- In:  $previous (groups)
-- Out: the same groups with the members picked, in the order of picking; the rest as lists with reason 'not_selected'
WITH ranked AS (
    SELECT
        *,
        len(members) AS n,
        CASE $select
            WHEN 'diverse' THEN list_sort(list_transform(members, lambda member, place:
                {'rank': -member.reward, 'place': place}
            ))
            WHEN 'random' THEN list_sort(list_transform(members, lambda member, place: {
                'rank': ('0x' || md5(
                    concat_ws(chr(31), $seed, member.rollout_id, $group_id, place - 1)
                )[:15])::BIGINT::DOUBLE,
                'place': place
            }))
            ELSE list_transform(members, lambda member, place: {'rank': 0.0::DOUBLE, 'place': place})
        END AS ranks
    FROM $previous
    WHERE reason IS NULL
),
picked AS (
    SELECT
        * EXCLUDE (ranks),
        CASE
            WHEN n > $size AND $select = 'diverse' THEN list_transform(range($size), lambda i:
                ranks[1 + round_even(i * ((n - 1)::DOUBLE / greatest($size - 1, 1)), 0)::BIGINT].place
            )
            WHEN n > $size THEN list_sort(list_transform(ranks[:$size], lambda ranked: ranked.place))
            WHEN $repeat THEN list_transform(range($size), lambda i: 1 + i % n)
            ELSE range(1, n + 1)
        END AS places
    FROM ranked
)
SELECT $group_key, reason, list_transform(places, lambda place: members[place]) AS members
FROM picked
UNION ALL BY NAME
SELECT
    $group_key, 'not_selected' AS reason,
    list_filter(members, lambda member, place: NOT list_contains(places, place)) AS members
FROM picked
WHERE n > $size
UNION ALL BY NAME
SELECT $group_key, reason, members
FROM $previous
WHERE reason IS NOT NULL
