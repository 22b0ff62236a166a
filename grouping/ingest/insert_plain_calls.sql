-- In: plain_rows, LM calls
-- Out: call_rows, one row a choice, with the columns that a span alone can tell
INSERT INTO call_rows BY NAME
SELECT span_id || CASE WHEN choice = 0 THEN '' ELSE '.' || choice END AS call_id,
       span_id, lm_parent, rollout_id, run, split, step, example_id, module, coalesce(key, '') AS key, execution,
       recorded_invocation, recorded_turn, coalesce(recorded_invocation, 0) AS invocation,
       coalesce(recorded_turn, 0) AS turn, choice, coalesce(nullif(call_kind, ''), 'call') AS kind, started_at,
       (epoch_ns(ended_at) - epoch_ns(started_at)) / 1e6 AS duration_ms, status,
       coalesce(nullif(request_model, ''), response_model) AS model, provider, policy_version, response_id, messages,
       completions[choice + 1] AS completion, finish_reasons[choice + 1] AS finish_reason, sampling,
       CASE WHEN choice = 0 THEN input_tokens END AS input_tokens,
       CASE WHEN choice = 0 THEN output_tokens END AS output_tokens,
       coalesce(unordered, false) AS unordered, coalesce(len(truncated), 0) > 0 AS truncated,
       coalesce(len(redacted), 0) > 0 AS redacted,
       coalesce(late, false) AS late
FROM (
    SELECT *, unnest(range(greatest(len(completions), 1))) AS choice
    FROM plain_rows
);
