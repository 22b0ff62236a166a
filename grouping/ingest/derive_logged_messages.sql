-- In: logged_messages, what log records say of calls, a row each choice; the variables `logged_since` and
--     `logged_until`
-- Out: call_rows with it, and with a row for each choice that the span did not count
UPDATE call_rows SET
    messages = told.messages,
    completion = told.completion,
    finish_reason = coalesce(call_rows.finish_reason, told.finish_reason),
    truncated = truncated OR is_cut,
    redacted = redacted OR is_redacted,
    from_records = true,
    prompt_id = told.prompt_id
FROM logged_messages AS told
WHERE call_rows.started_at BETWEEN getvariable('logged_since') AND getvariable('logged_until')
  AND call_rows.rollout_id = told.rollout_id AND call_rows.span_id = told.span_id AND call_rows.choice = told.choice;

INSERT INTO call_rows BY NAME
WITH calls_here AS (
    FROM call_rows
    WHERE started_at BETWEEN getvariable('logged_since') AND getvariable('logged_until')
),
uncounted AS (
    FROM logged_messages ANTI JOIN calls_here USING (rollout_id, span_id, choice)
)
SELECT first.* REPLACE (
           span_id || '.' || told.choice AS call_id, told.choice AS choice,
           told.messages AS messages, told.completion AS completion, told.finish_reason AS finish_reason,
           truncated OR is_cut AS truncated, redacted OR is_redacted AS redacted, true AS from_records, told.prompt_id AS prompt_id,
           -- What a request cost stands at its first choice; tokens and rewards are found below.
           NULL::BIGINT AS input_tokens, NULL::BIGINT AS output_tokens,
           NULL::UHUGEINT AS completion_key, false AS exact, false AS on_policy, NULL::DOUBLE AS reward
       )
FROM uncounted AS told
JOIN calls_here AS first USING (rollout_id, span_id)
WHERE first.choice = 0;
