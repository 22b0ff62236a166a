-- In: call_rows, one row a choice of an LM span; completions, one row a sampled choice
-- Out: the public columns; of two spans that report one call only the deeper is a call
CREATE OR REPLACE VIEW calls AS
SELECT call_rows.call_id, rollout_id, run, split, step, example_id, call_rows.module, key, invocation, turn,
       call_rows.choice, kind, call_rows.started_at::TIMESTAMP AS started_at, duration_ms, status,
       call_rows.model, provider,
       coalesce(completions.policy_version, call_rows.policy_version) AS policy_version,
       coalesce(call_rows.response_id, completions.response_id) AS response_id,
       messages,
       coalesce(completion, completions.text) AS completion,
       coalesce(call_rows.finish_reason, completions.finish_reason) AS finish_reason,
       coalesce(completions.sampling, call_rows.sampling) AS sampling,
       input_tokens, output_tokens, prompt_token_ids, completion_token_ids, completion_logprobs,
       call_rows.exact, call_rows.on_policy, cached, unordered, truncated,
       coalesce(call_rows.redacted, false)
           OR (completion IS NULL AND coalesce(completions.redacted, false)) AS redacted,
       late, reward
FROM call_rows
LEFT JOIN completions USING (completion_key)
WHERE NOT shadowed;
