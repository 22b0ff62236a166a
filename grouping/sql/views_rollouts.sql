-- In: rollout_rows, one row for every rollout and every other trace, kept up to date by ingest
-- Out: the public columns
CREATE OR REPLACE VIEW rollouts AS
SELECT rollout_id, run, split, step, superseded, rollout_index, program, example_id,
       started_at::TIMESTAMP AS started_at, duration_ms, status, error_type, reward,
       policy_version, n_calls, input, output, trace_id
FROM rollout_rows
WHERE is_rollout;
