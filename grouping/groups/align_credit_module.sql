-- A module's own score in place of the rollout's reward, or mixed with it: weight * own + (1 - weight) * reward.
-- A call's own score comes before its module's; the latest score counts. Failed rollouts keep what failures earn.
-- In:  $previous (calls), scores; $module_weight over module
-- Out: the same calls with the reward that they earned
WITH scored_calls AS (
    SELECT call_id, max_by(value, (recorded_at, record_id)) AS call_score
    FROM scores
    WHERE name = 'reward' AND call_id IS NOT NULL
    GROUP BY call_id
),
scored_modules AS (
    SELECT rollout_id, module, max_by(value, (recorded_at, record_id)) AS module_score
    FROM scores
    WHERE name = 'reward' AND call_id IS NULL AND module IS NOT NULL
    GROUP BY rollout_id, module
),
weighed AS (
    SELECT
        calls.*,
        coalesce(call_score, module_score) AS own,
        $module_weight AS weight,
        CASE
            WHEN failed OR own IS NULL OR weight = 0 THEN reward
            WHEN weight = 1 THEN own
            ELSE weight * own + (1 - weight) * reward
        END AS earned
    FROM $previous AS calls
    LEFT JOIN scored_calls USING (call_id)
    LEFT JOIN scored_modules USING (rollout_id, module)
)
SELECT * EXCLUDE (own, weight, earned) REPLACE (
    earned AS reward,
    CASE WHEN reason = 'unscored' AND earned IS NOT NULL THEN NULL ELSE reason END AS reason
)
FROM weighed
