-- In: touched(rollout_id); spans; call_rows
-- Out: module, key and execution of the calls whose spans were not stamped: those of the
--      nearest enclosing decorator, or the root span's name where there is none. Parents end,
--      and so arrive, after their children: this is done again when more of a trace comes.
--      No call lies 256 spans below its module: parents that go round in a circle end there.
CREATE OR REPLACE TEMP TABLE found_modules AS
WITH RECURSIVE climb AS (
    SELECT rollout_id, span_id, parent_span_id AS ancestor, 0 AS height
    FROM spans
    WHERE kind = 'lm' AND module IS NULL AND rollout_id IN (FROM touched) AND started_at >= getvariable('since')
    UNION
    SELECT climb.rollout_id, climb.span_id, spans.parent_span_id, height + 1
    FROM climb
    JOIN spans ON spans.rollout_id = climb.rollout_id AND spans.span_id = climb.ancestor
    WHERE (spans.kind IS NULL OR spans.kind NOT IN ('module', 'program', 'tool'))
      AND spans.started_at >= getvariable('since') AND height < 256
)
SELECT climb.rollout_id, climb.span_id,
       arg_max(coalesce(spans.module, spans.name), height) AS module,
       coalesce(arg_max(spans.key, height), '') AS key,
       arg_max(spans.span_id, height) AS execution
FROM climb
JOIN spans ON spans.rollout_id = climb.rollout_id AND spans.span_id = climb.ancestor
WHERE spans.started_at >= getvariable('since')
GROUP BY ALL;

UPDATE call_rows SET module = found_modules.module, key = found_modules.key, execution = found_modules.execution
FROM found_modules
WHERE call_rows.started_at >= getvariable('since')
  AND call_rows.rollout_id = found_modules.rollout_id AND call_rows.span_id = found_modules.span_id
  AND (call_rows.module, call_rows.key, call_rows.execution)
      IS DISTINCT FROM (found_modules.module, found_modules.key, found_modules.execution);

DROP TABLE found_modules;
