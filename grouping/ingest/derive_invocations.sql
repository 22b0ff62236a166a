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
           min(recorded_invocation) AS recorded_invocation, min(started_at) AS started_at,
           -- Its ordinals are those that were recorded, and of its turns from 0 on each is there once: in
           -- bits, which costs half of what it costs to count distinct ones, and is false beyond 64.
           bool_and(invocation IS NOT DISTINCT FROM recorded_invocation AND turn IS NOT DISTINCT FROM recorded_turn)
           AND max(recorded_invocation) = min(recorded_invocation)
           AND min(recorded_turn) = 0 AND max(recorded_turn) = count(*) - 1
           AND bit_count(bit_or(1::UBIGINT << greatest(0, least(recorded_turn, 63)))) = count(*) AS is_settled
    FROM requests
    GROUP BY rollout_id, module, key, kind, execution
),
unsettled AS (
    -- Hardly any where the tracer recorded; to see that costs a third of working all of them out.
    SELECT rollout_id
    FROM executions
    GROUP BY rollout_id, module, key, kind
    HAVING NOT (
        bool_and(is_settled)
        AND min(recorded_invocation) = 0 AND max(recorded_invocation) = count(*) - 1
        AND bit_count(bit_or(1::UBIGINT << greatest(0, least(recorded_invocation, 63)))) = count(*)
    )
),
invocations AS (
    SELECT rollout_id, module, key, kind, execution,
           row_number() OVER (
               PARTITION BY rollout_id, module, key, kind ORDER BY recorded_invocation NULLS LAST, started_at, execution
           ) - 1 AS invocation
    FROM executions
    WHERE rollout_id IN (FROM unsettled)
),
turns AS (
    SELECT rollout_id, module, key, kind, execution, span_id, invocation AS old_invocation, turn AS old_turn,
           row_number() OVER (
               PARTITION BY rollout_id, module, key, kind, execution
               ORDER BY recorded_turn NULLS LAST, started_at, span_id
           ) - 1 AS turn
    FROM requests
    WHERE rollout_id IN (FROM unsettled)
)
SELECT turns.rollout_id, turns.span_id, invocations.invocation, turns.turn
FROM turns
JOIN invocations
  ON turns.rollout_id = invocations.rollout_id
 AND turns.module IS NOT DISTINCT FROM invocations.module
 AND turns.key = invocations.key
 AND turns.kind = invocations.kind
 AND turns.execution IS NOT DISTINCT FROM invocations.execution
WHERE invocations.invocation <> old_invocation OR turns.turn <> old_turn;

UPDATE call_rows SET invocation = ordinals.invocation, turn = ordinals.turn
FROM ordinals
WHERE call_rows.started_at >= getvariable('since')
  AND call_rows.rollout_id = ordinals.rollout_id AND call_rows.span_id = ordinals.span_id;

DROP TABLE ordinals;
