-- In: new_rollout_ids, new_call_ids, new_response_ids, new_superseded_runs, one column `id` each
-- Out: touched(rollout_id), the rollouts whose derived columns the new rows may change
CREATE OR REPLACE TEMP TABLE touched AS
SELECT id AS rollout_id FROM new_rollout_ids
UNION
SELECT rollout_id FROM call_rows WHERE call_id IN (FROM new_call_ids) OR span_id IN (FROM new_call_ids)
UNION
SELECT rollout_id FROM call_rows WHERE response_id IN (FROM new_response_ids)
UNION
SELECT rollout_id FROM rollout_rows WHERE run IN (FROM new_superseded_runs)
UNION
-- Started and not ended: whether their writer is still alive is asked each time.
SELECT rollout_id FROM rollout_rows WHERE status IS NULL;
