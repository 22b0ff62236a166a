-- The tables of a store. Wide values (messages, tokens, inputs) have one home each; whatever
-- a query filters or groups by is a column of its own, filled when a span is ingested.

CREATE TABLE segments (
    name VARCHAR PRIMARY KEY,
    bytes_ingested BIGINT NOT NULL,
    spans BIGINT NOT NULL,
    records BIGINT NOT NULL,
    rejected BIGINT NOT NULL,
    repeated BIGINT NOT NULL,
    conflicting BIGINT NOT NULL
);

CREATE TABLE spans (
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
    input VARCHAR,
    output VARCHAR,
    operation VARCHAR,
    provider VARCHAR,
    request_model VARCHAR,
    response_model VARCHAR,
    response_id VARCHAR,
    input_tokens BIGINT,
    output_tokens BIGINT,
    choice_count BIGINT,
    attributes VARCHAR,
    events VARCHAR,
    resource VARCHAR,
    scope VARCHAR
);

CREATE TABLE call_rows (
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
    policy_version VARCHAR,
    response_id VARCHAR,
    messages VARCHAR,
    completion VARCHAR,
    finish_reason VARCHAR,
    sampling VARCHAR,
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

CREATE TABLE rollout_rows (
    rollout_id VARCHAR NOT NULL,
    run VARCHAR,
    split VARCHAR,
    step BIGINT,
    superseded BOOLEAN NOT NULL,
    rollout_index BIGINT,
    program VARCHAR,
    example_id VARCHAR,
    started_at TIMESTAMP_NS,
    duration_ms DOUBLE,
    status VARCHAR,
    error_type VARCHAR,
    reward DOUBLE,
    policy_version VARCHAR,
    n_calls BIGINT NOT NULL,
    input VARCHAR,
    output VARCHAR,
    trace_id VARCHAR,
    pid BIGINT
);

CREATE TABLE rollout_starts (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    rollout_id VARCHAR NOT NULL,
    run VARCHAR,
    split VARCHAR,
    step BIGINT,
    rollout_index BIGINT,
    program VARCHAR,
    example_id VARCHAR,
    input VARCHAR,
    policy_version VARCHAR,
    pid BIGINT,
    rest VARCHAR
);

CREATE TABLE rollout_ends (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    rollout_id VARCHAR NOT NULL,
    status VARCHAR NOT NULL,
    error_type VARCHAR,
    output VARCHAR,
    rest VARCHAR
);

CREATE TABLE completions (
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
    text VARCHAR,
    finish_reason VARCHAR,
    sampling VARCHAR,
    exact BOOLEAN NOT NULL,
    on_policy BOOLEAN NOT NULL,
    started_at TIMESTAMP_NS,
    ended_at TIMESTAMP_NS,
    rest VARCHAR
);

CREATE TABLE scores (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    rollout_id VARCHAR,
    call_id VARCHAR,
    module VARCHAR,
    name VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    source VARCHAR,
    feedback VARCHAR,
    rest VARCHAR
);

CREATE TABLE policies (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    run VARCHAR,
    version VARCHAR NOT NULL,
    step BIGINT,
    trainer VARCHAR,
    model VARCHAR,
    prompts VARCHAR,
    rest VARCHAR
);

CREATE TABLE jobs (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    run VARCHAR,
    job_id VARCHAR NOT NULL,
    provider VARCHAR,
    status VARCHAR,
    detail VARCHAR,
    rest VARCHAR
);

CREATE TABLE batches (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    run VARCHAR,
    step BIGINT,
    policy_version VARCHAR,
    left_out VARCHAR,
    report VARCHAR,
    rest VARCHAR
);

CREATE TABLE batch_members (
    record_id VARCHAR NOT NULL,
    group_id VARCHAR,
    slot BIGINT,
    call_id VARCHAR,
    rollout_id VARCHAR,
    reward DOUBLE,
    advantage DOUBLE
);

CREATE TABLE supersedes (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    run VARCHAR NOT NULL,
    from_step BIGINT NOT NULL,
    rest VARCHAR
);

-- Records of names that this version does not know: kept, so that a later one may read them.
CREATE TABLE other_records (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    event_name VARCHAR,
    body VARCHAR,
    rest VARCHAR
);
