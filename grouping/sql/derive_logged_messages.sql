-- In: logged_messages, what log records say of calls, a row each choice
-- Out: call_rows with it, and with a row for each choice that the span did not count
UPDATE call_rows SET
    messages = logged_messages.messages,
    completion = logged_messages.completion,
    finish_reason = coalesce(call_rows.finish_reason, logged_messages.finish_reason),
    truncated = truncated OR is_cut,
    from_records = true,
    prompt_id = logged_messages.prompt_id
FROM logged_messages
WHERE call_rows.rollout_id = logged_messages.rollout_id AND call_rows.span_id = logged_messages.span_id
  AND call_rows.choice = logged_messages.choice;

INSERT INTO call_rows BY NAME
SELECT first.* REPLACE (
           first.span_id || '.' || told.choice AS call_id, told.choice AS choice,
           told.messages AS messages, told.completion AS completion, told.finish_reason AS finish_reason,
           truncated OR is_cut AS truncated, true AS from_records, told.prompt_id AS prompt_id,
           -- What a request cost stands at its first choice; tokens and rewards are found below.
           NULL::BIGINT AS input_tokens, NULL::BIGINT AS output_tokens,
           NULL::UHUGEINT AS completion_key, false AS exact, false AS on_policy, NULL::DOUBLE AS reward
       )
FROM logged_messages AS told
JOIN call_rows AS first ON first.rollout_id = told.rollout_id AND first.span_id = told.span_id AND first.choice = 0
WHERE NOT EXISTS (
    SELECT 1 FROM call_rows
    WHERE call_rows.rollout_id = told.rollout_id AND call_rows.span_id = told.span_id
      AND call_rows.choice = told.choice
);
