-- In: touched(rollout_id); call_rows; spans
-- Out: call_rows.shadowed, where a deeper LM span reports the same call; what was worked out
--      for such a row while it still counted is undone
CREATE OR REPLACE TEMP TABLE outer_spans AS
WITH RECURSIVE climb AS (
    -- The tracer stamps what it sees; for another instrumentation's span the parents are asked.
    SELECT rollout_id, parent_span_id AS ancestor
    FROM spans
    WHERE kind = 'lm' AND scope IS DISTINCT FROM 'tracetune' AND parent_span_id IS NOT NULL
      AND rollout_id IN (FROM touched) AND started_at >= getvariable('since')
    UNION
    SELECT climb.rollout_id, spans.parent_span_id
    FROM climb
    JOIN spans ON spans.rollout_id = climb.rollout_id AND spans.span_id = climb.ancestor
    -- What a module or a tool calls inside an LM span is a call of its own.
    WHERE spans.kind IS NULL AND spans.parent_span_id IS NOT NULL AND spans.started_at >= getvariable('since')
)
SELECT rollout_id, ancestor AS span_id FROM climb
UNION
SELECT rollout_id, lm_parent
FROM call_rows
WHERE lm_parent IS NOT NULL AND rollout_id IN (FROM touched) AND started_at >= getvariable('since');

UPDATE call_rows SET
    shadowed = true,
    cached = false,
    invocation = coalesce(recorded_invocation, 0),
    turn = coalesce(recorded_turn, 0)
FROM outer_spans
WHERE NOT shadowed AND call_rows.started_at >= getvariable('since')
  AND call_rows.rollout_id = outer_spans.rollout_id AND call_rows.span_id = outer_spans.span_id;

DROP TABLE outer_spans;
