-- In: doomed(rollout_id)
-- Out: everything that was recorded of those rollouts is gone; `batches` keep the ids and rewards of what
--      was trained on, which hold no text
CREATE OR REPLACE TEMP TABLE doomed_calls AS
SELECT call_id, span_id, completion_key FROM call_rows WHERE rollout_id IN (FROM doomed);

DELETE FROM completions
WHERE (
    completion_key IN (SELECT completion_key FROM doomed_calls)
    OR call_id IN (SELECT span_id FROM doomed_calls)
)
-- A cached answer may be another rollout's too.
AND completion_key NOT IN (
    SELECT completion_key FROM call_rows WHERE completion_key IS NOT NULL AND rollout_id NOT IN (FROM doomed)
);
DELETE FROM scores
WHERE rollout_id IN (FROM doomed) OR call_id IN (SELECT call_id FROM doomed_calls);
DELETE FROM rollout_starts WHERE rollout_id IN (FROM doomed);
DELETE FROM rollout_ends WHERE rollout_id IN (FROM doomed);
DELETE FROM spans WHERE rollout_id IN (FROM doomed);
DELETE FROM call_rows WHERE rollout_id IN (FROM doomed);
DELETE FROM rollout_rows WHERE rollout_id IN (FROM doomed);
DROP TABLE doomed_calls;
DROP TABLE doomed;
