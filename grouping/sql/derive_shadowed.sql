-- In: touched(rollout_id); call_rows
-- Out: call_rows.shadowed, where a deeper LM span reports the same call; what was worked out
--      for such a row while it still counted is undone
UPDATE call_rows SET
    shadowed = true,
    cached = false,
    invocation = coalesce(recorded_invocation, 0),
    turn = coalesce(recorded_turn, 0)
WHERE NOT shadowed
  AND rollout_id IN (FROM touched) AND started_at >= getvariable('since')
  AND span_id IN (
      SELECT lm_parent
      FROM call_rows
      WHERE rollout_id IN (FROM touched) AND started_at >= getvariable('since') AND lm_parent IS NOT NULL
  );
