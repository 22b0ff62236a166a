-- Long texts are kept as zstd, and calls say what their request cost. DuckDB fixes a column's
-- compression when it is made, so the tables are made anew.

CREATE TABLE spans_2 (
    trace_id VARCHAR NOT NULL,
    span_id VARCHAR NOT NULL,
    parent_span_id VARCHAR,
    name VARCHAR NOT NULL,
    kind VARCHAR,
    started_at TIMESTAMP_NS NOT NULL,
    ended_at TIMESTAMP_NS NOT NULL,
    status VARCHAR NOT NULL,
    error_type VARCHAR,
    run VARCHAR,
    split VARCHAR,
    step BIGINT,
    rollout_id VARCHAR NOT NULL,
    example_id VARCHAR,
    policy_version VARCHAR,
    module VARCHAR,
    key VARCHAR,
    execution VARCHAR,
    recorded_invocation BIGINT,
    recorded_turn BIGINT,
    unordered BOOLEAN,
    late BOOLEAN,
    truncated VARCHAR[],
    input VARCHAR USING COMPRESSION zstd,
    output VARCHAR USING COMPRESSION zstd,
    operation VARCHAR,
    provider VARCHAR,
    request_model VARCHAR,
    response_model VARCHAR,
    response_id VARCHAR,
    input_tokens BIGINT,
    output_tokens BIGINT,
    choice_count BIGINT,
    attributes VARCHAR USING COMPRESSION zstd,
    events VARCHAR USING COMPRESSION zstd,
    resource VARCHAR,
    scope VARCHAR
);
INSERT INTO spans_2 FROM spans;

CREATE TABLE call_rows_2 (
    call_id VARCHAR NOT NULL,
    span_id VARCHAR NOT NULL,
    lm_parent VARCHAR,
    rollout_id VARCHAR NOT NULL,
    run VARCHAR,
    split VARCHAR,
    step BIGINT,
    example_id VARCHAR,
    module VARCHAR,
    key VARCHAR NOT NULL,
    execution VARCHAR,
    recorded_invocation BIGINT,
    recorded_turn BIGINT,
    invocation BIGINT NOT NULL,
    turn BIGINT NOT NULL,
    choice BIGINT NOT NULL,
    kind VARCHAR NOT NULL,
    started_at TIMESTAMP_NS NOT NULL,
    duration_ms DOUBLE NOT NULL,
    status VARCHAR NOT NULL,
    model VARCHAR,
    provider VARCHAR,
    policy_version VARCHAR,
    response_id VARCHAR,
    messages VARCHAR USING COMPRESSION zstd,
    completion VARCHAR USING COMPRESSION zstd,
    finish_reason VARCHAR,
    sampling VARCHAR,
    input_tokens BIGINT,
    output_tokens BIGINT,
    completion_key UHUGEINT,
    exact BOOLEAN NOT NULL DEFAULT false,
    on_policy BOOLEAN NOT NULL DEFAULT false,
    shadowed BOOLEAN NOT NULL DEFAULT false,
    cached BOOLEAN NOT NULL DEFAULT false,
    unordered BOOLEAN NOT NULL,
    truncated BOOLEAN NOT NULL,
    late BOOLEAN NOT NULL,
    reward DOUBLE
);
-- A request's tokens stand at its first choice, so that a sum counts them once.
INSERT INTO call_rows_2 BY NAME
SELECT call_rows.*, requests.* EXCLUDE (rollout_id, span_id)
FROM call_rows
LEFT JOIN (
    SELECT rollout_id, span_id, any_value(provider) AS provider, any_value(input_tokens) AS input_tokens,
           any_value(output_tokens) AS output_tokens
    FROM spans
    WHERE kind = 'lm'
    GROUP BY ALL
) AS requests
  ON requests.rollout_id = call_rows.rollout_id AND requests.span_id = call_rows.span_id;
UPDATE call_rows_2 SET input_tokens = NULL, output_tokens = NULL WHERE choice > 0;

-- `is_rollout` is false for a trace that is no rollout (as far as is known); `first_at` is the earliest
-- start of anything that names it: what is older need not be looked through.
CREATE TABLE rollout_rows_2 (
    rollout_id VARCHAR NOT NULL,
    is_rollout BOOLEAN NOT NULL,
    run VARCHAR,
    split VARCHAR,
    step BIGINT,
    superseded BOOLEAN NOT NULL,
    rollout_index BIGINT,
    program VARCHAR,
    example_id VARCHAR,
    first_at TIMESTAMP_NS,
    started_at TIMESTAMP_NS,
    duration_ms DOUBLE,
    status VARCHAR,
    error_type VARCHAR,
    reward DOUBLE,
    policy_version VARCHAR,
    n_calls BIGINT NOT NULL,
    input VARCHAR USING COMPRESSION zstd,
    output VARCHAR USING COMPRESSION zstd,
    trace_id VARCHAR,
    pid BIGINT
);
INSERT INTO rollout_rows_2 BY NAME
SELECT rollout_rows.*, true AS is_rollout, first_at
FROM rollout_rows
LEFT JOIN (SELECT rollout_id, min(started_at) AS first_at FROM spans GROUP BY rollout_id) USING (rollout_id);
INSERT INTO rollout_rows_2 BY NAME
SELECT rollout_id, false AS is_rollout, false AS superseded, min(started_at) AS first_at, 0 AS n_calls
FROM spans
WHERE rollout_id NOT IN (SELECT rollout_id FROM rollout_rows)
GROUP BY rollout_id;

CREATE TABLE rollout_starts_2 (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    rollout_id VARCHAR NOT NULL,
    run VARCHAR,
    split VARCHAR,
    step BIGINT,
    rollout_index BIGINT,
    program VARCHAR,
    example_id VARCHAR,
    input VARCHAR USING COMPRESSION zstd,
    policy_version VARCHAR,
    pid BIGINT,
    rest VARCHAR
);
INSERT INTO rollout_starts_2 FROM rollout_starts;

CREATE TABLE rollout_ends_2 (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    rollout_id VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    error_type VARCHAR,
    output VARCHAR USING COMPRESSION zstd,
    rest VARCHAR
);
INSERT INTO rollout_ends_2 FROM rollout_ends;

CREATE TABLE completions_2 (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    completion_key UHUGEINT NOT NULL,
    response_id VARCHAR,
    choice BIGINT NOT NULL,
    call_id VARCHAR,
    module VARCHAR,
    model VARCHAR,
    policy_version VARCHAR,
    prompt_token_ids INTEGER[],
    completion_token_ids INTEGER[],
    completion_logprobs DOUBLE[],
    text VARCHAR USING COMPRESSION zstd,
    finish_reason VARCHAR,
    sampling VARCHAR,
    exact BOOLEAN NOT NULL,
    on_policy BOOLEAN NOT NULL,
    started_at TIMESTAMP_NS,
    ended_at TIMESTAMP_NS,
    rest VARCHAR
);
INSERT INTO completions_2 FROM completions;

DROP TABLE spans;
DROP TABLE call_rows;
DROP TABLE rollout_rows;
DROP TABLE rollout_starts;
DROP TABLE rollout_ends;
DROP TABLE completions;
ALTER TABLE spans_2 RENAME TO spans;
ALTER TABLE call_rows_2 RENAME TO call_rows;
ALTER TABLE rollout_rows_2 RENAME TO rollout_rows;
ALTER TABLE rollout_starts_2 RENAME TO rollout_starts;
ALTER TABLE rollout_ends_2 RENAME TO rollout_ends;
ALTER TABLE completions_2 RENAME TO completions;
