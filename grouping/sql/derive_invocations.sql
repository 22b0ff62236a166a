-- In: touched(rollout_id); call_rows with the ordinals that were recorded at entry
-- Out: call_rows.invocation, dense over the executions that made a call, and call_rows.turn,
--      dense over the calls of one execution; choices of one request share both
CREATE OR REPLACE TEMP TABLE ordinals AS
WITH requests AS (
    -- Every request has a first choice.
    SELECT rollout_id, module, key, kind, execution, span_id, recorded_invocation, recorded_turn, started_at,
           invocation, turn
    FROM call_rows
    WHERE NOT shadowed AND choice = 0 AND rollout_id IN (FROM touched) AND started_at >= getvariable('since')
),
executions AS (
    SELECT rollout_id, module, key, kind, execution,
           row_number() OVER (
               PARTITION BY rollout_id, module, key, kind
               ORDER BY min(recorded_invocation) NULLS LAST, min(started_at), execution
           ) - 1 AS invocation
    FROM requests
    GROUP BY rollout_id, module, key, kind, execution
),
turns AS (
    SELECT rollout_id, module, key, kind, execution, span_id, invocation AS old_invocation, turn AS old_turn,
           row_number() OVER (
               PARTITION BY rollout_id, module, key, kind, execution
               ORDER BY recorded_turn NULLS LAST, started_at, span_id
           ) - 1 AS turn
    FROM requests
)
SELECT turns.rollout_id, turns.span_id, executions.invocation, turns.turn
FROM turns
JOIN executions
  ON turns.rollout_id = executions.rollout_id
 AND turns.module IS NOT DISTINCT FROM executions.module
 AND turns.key = executions.key
 AND turns.kind = executions.kind
 AND turns.execution IS NOT DISTINCT FROM executions.execution
WHERE executions.invocation <> old_invocation OR turns.turn <> old_turn;

UPDATE call_rows SET invocation = ordinals.invocation, turn = ordinals.turn
FROM ordinals
WHERE call_rows.started_at >= getvariable('since')
  AND call_rows.rollout_id = ordinals.rollout_id AND call_rows.span_id = ordinals.span_id;

DROP TABLE ordinals;
