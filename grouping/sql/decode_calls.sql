-- In: plain_spans
-- Out: plain_spans without the lines that were not plain; plain_call_rows, one row a choice of an
--      LM span, with the columns of `call_rows` that a span alone can tell
DELETE FROM plain_spans WHERE NOT is_plain;

CREATE OR REPLACE TEMP VIEW plain_call_rows AS
SELECT number, span_id || CASE WHEN choice = 0 THEN '' ELSE '.' || choice END AS call_id,
       span_id, lm_parent, rollout_id, run, split, step, example_id, module, coalesce(key, '') AS key, execution,
       recorded_invocation, recorded_turn, coalesce(recorded_invocation, 0) AS invocation,
       coalesce(recorded_turn, 0) AS turn, choice, call_kind AS kind, started_at,
       (epoch_ns(ended_at) - epoch_ns(started_at)) / 1e6 AS duration_ms, status,
       coalesce(nullif(request_model, ''), response_model) AS model, policy_version, response_id, messages,
       completions[choice + 1] AS completion, finish_reasons[choice + 1] AS finish_reason, sampling,
       coalesce(unordered, false) AS unordered, coalesce(len(truncated), 0) > 0 AS truncated,
       coalesce(late, false) AS late
FROM (
    SELECT *, unnest(range(greatest(len(completions), 1))) AS choice
    FROM plain_spans
    WHERE kind = 'lm'
);
