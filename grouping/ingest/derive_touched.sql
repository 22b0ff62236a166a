-- In: the rows after row `last_<table>` of each table, which are new; logged_messages(rollout_id, …)
-- Out: touched(rollout_id), the rollouts whose derived columns the new rows may change; the variable
--      `since`: no span or call of theirs began earlier, so what is older need not be looked through
CREATE OR REPLACE TEMP TABLE touched AS
WITH new_scores AS (
    SELECT rollout_id, call_id FROM scores WHERE rowid > getvariable('last_scores')
),
new_completions AS (
    SELECT call_id, response_id FROM completions WHERE rowid > getvariable('last_completions')
)
SELECT rollout_id FROM spans WHERE rowid > getvariable('last_spans')
UNION
SELECT rollout_id FROM rollout_starts WHERE rowid > getvariable('last_rollout_starts')
UNION
SELECT rollout_id FROM rollout_ends WHERE rowid > getvariable('last_rollout_ends')
UNION
SELECT rollout_id FROM new_scores WHERE rollout_id IS NOT NULL
UNION
SELECT rollout_id FROM call_rows SEMI JOIN new_scores USING (call_id)
UNION
SELECT rollout_id FROM call_rows SEMI JOIN new_completions ON new_completions.call_id = call_rows.span_id
UNION
SELECT rollout_id FROM call_rows SEMI JOIN new_completions USING (response_id)
UNION
SELECT rollout_id FROM logged_messages
UNION
SELECT rollout_id FROM rollout_rows
SEMI JOIN (FROM supersedes WHERE rowid > getvariable('last_supersedes')) USING (run)
UNION
-- Started and not ended: whether their writer is still alive is asked each time.
SELECT rollout_id FROM rollout_rows WHERE is_rollout AND status IS NULL;

SET VARIABLE since = (
    SELECT least(
        (SELECT min(started_at) FROM spans WHERE rowid > getvariable('last_spans')),
        (SELECT min(first_at) FROM rollout_rows WHERE rollout_id IN (FROM touched))
    )
);
