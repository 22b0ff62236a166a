-- Ragged modules filled to the longest rollout: a shorter one repeats invocations of its own.
-- An invocation is repeated with all its turns and choices; its calls then stand in the group that they fill.
-- In:  $previous (calls)
-- Out: the same calls, and the repeated ones under the invocation that they fill
WITH lengths AS (
    SELECT
        $cohort, module, key, rollout_id,
        max(invocation) + 1 AS length,
        list_sort(list(DISTINCT invocation)) AS own
    FROM $previous
    WHERE reason IS NULL
    GROUP BY ALL
),
bounds AS (
    SELECT *, max(length) OVER (PARTITION BY $cohort, module, key) AS longest
    FROM lengths
),
gaps AS (
    SELECT rollout_id, module, key, own, unnest(range(length, longest)) AS filled
    FROM bounds
    WHERE length < longest
),
hashed_gaps AS (
    -- MD5 is the same in every version of DuckDB, which hash() does not promise; 15 digits fit a BIGINT.
    SELECT *, ('0x' || md5(concat_ws(chr(31), $seed, rollout_id, module, key, filled))[:15])::BIGINT AS hashed
    FROM gaps
),
picks AS (
    SELECT
        rollout_id, module, key, filled,
        CASE $fill WHEN 'last' THEN own[-1] ELSE own[1 + hashed % len(own)] END AS invocation
    FROM hashed_gaps
)
SELECT *
FROM $previous
UNION ALL BY NAME
SELECT calls.* REPLACE (picks.filled AS invocation)
FROM picks
JOIN $previous AS calls USING (rollout_id, module, key, invocation)
WHERE calls.reason IS NULL
