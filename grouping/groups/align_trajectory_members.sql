-- One row a call of every trajectory: its calls, in the order they were made, share the rollout's place and advantage.
-- In:  aligned_units (as align_members gives them, a rollout each), aligned_calls
-- Out: group_no, group_id, slot, trajectory, call_id, rollout_id, reward, advantage, reason
WITH rollouts_left_out AS (
    FROM (VALUES ('constant'), ('singleton'), ('not_selected')) AS reasons(reason)
),
unfolded AS (
    SELECT
        units.* REPLACE (calls.call_id AS call_id),
        row_number() OVER (
            PARTITION BY group_no
            ORDER BY trajectory, started_at, invocation, turn, choice, calls.call_id
        ) - 1 AS place
    FROM aligned_units AS units
    JOIN aligned_calls AS calls USING (rollout_id)
    WHERE calls.reason IS NULL
      AND (units.reason IS NULL OR units.reason IN (FROM rollouts_left_out))
)
SELECT * EXCLUDE (place) REPLACE (place AS slot)
FROM unfolded
UNION ALL BY NAME
SELECT *
FROM aligned_units
WHERE reason NOT IN (FROM rollouts_left_out)
