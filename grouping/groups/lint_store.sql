-- What was recorded and leads nowhere, in the store as a whole.
-- In:  completions, call_rows, scores, rollouts, segments
-- Out: unclaimed_completions, unknown_scores, rejected_lines, conflicting_lines
SELECT
    (SELECT count(*) FROM completions ANTI JOIN call_rows USING (completion_key)) AS unclaimed_completions,
    (
        SELECT count(*)
        FROM (
            SELECT record_id FROM scores ANTI JOIN rollouts USING (rollout_id) WHERE rollout_id IS NOT NULL
            UNION
            SELECT record_id FROM scores ANTI JOIN call_rows USING (call_id) WHERE call_id IS NOT NULL
        )
    ) AS unknown_scores,
    (SELECT coalesce(sum(rejected), 0)::BIGINT FROM segments) AS rejected_lines,
    (SELECT coalesce(sum(conflicting), 0)::BIGINT FROM segments) AS conflicting_lines
