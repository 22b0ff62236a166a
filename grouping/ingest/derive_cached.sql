-- In: touched(rollout_id); call_rows
-- Out: call_rows.cached, on every call whose response an earlier call had already been given
UPDATE call_rows SET cached = (call_rows.started_at, call_rows.span_id) > first_call
FROM (
    SELECT response_id, min((started_at, span_id)) AS first_call
    FROM call_rows
    SEMI JOIN (
        -- Nearly every response is given once.
        SELECT response_id
        FROM call_rows
        WHERE NOT shadowed AND response_id IN (
            SELECT response_id FROM call_rows WHERE rollout_id IN (FROM touched) AND started_at >= getvariable('since')
        )
        GROUP BY response_id
        HAVING count(*) > 1 OR bool_or(cached)
    ) AS given_again USING (response_id)
    WHERE NOT shadowed
    GROUP BY response_id
) AS answered
WHERE call_rows.response_id = answered.response_id
  AND NOT shadowed
  AND cached <> ((call_rows.started_at, call_rows.span_id) > first_call);
