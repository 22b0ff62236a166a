-- In: doomed(rollout_id)
-- Out: everything that was recorded of those rollouts is gone; `batches` keep the ids and rewards of what
--      was trained on, which hold no text
CREATE OR REPLACE TEMP TABLE doomed_calls AS
SELECT call_id, span_id, completion_key, response_id FROM call_rows WHERE rollout_id IN (FROM doomed);

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
-- What log records of others say of the spans, and of traces that nothing is left of.
CREATE OR REPLACE TEMP TABLE doomed_spans AS
SELECT DISTINCT trace_id, span_id FROM spans WHERE rollout_id IN (FROM doomed);
DELETE FROM rollout_starts WHERE rollout_id IN (FROM doomed);
DELETE FROM rollout_ends WHERE rollout_id IN (FROM doomed);
DELETE FROM spans WHERE rollout_id IN (FROM doomed);
DELETE FROM call_rows WHERE rollout_id IN (FROM doomed);
DELETE FROM rollout_rows WHERE rollout_id IN (FROM doomed);
DELETE FROM other_records
WHERE (trace_id, span_id) IN (FROM doomed_spans)
   OR trace_id IN (SELECT trace_id FROM doomed_spans) AND trace_id NOT IN (SELECT trace_id FROM spans)
   OR span_id IS NULL AND event_name = 'gen_ai.evaluation.result'
      AND (rest->>'$."gen_ai.response.id"') IN (SELECT response_id FROM doomed_calls);
DROP TABLE doomed_spans;
DROP TABLE doomed_calls;
DROP TABLE doomed;
