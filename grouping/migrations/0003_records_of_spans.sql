-- Log records of others know their span, and a call knows whether its prompt and answer came in such.

CREATE TABLE other_records_3 (
    record_id VARCHAR NOT NULL,
    recorded_at TIMESTAMP_NS NOT NULL,
    event_name VARCHAR,
    trace_id VARCHAR,
    span_id VARCHAR,
    body VARCHAR USING COMPRESSION zstd,
    rest VARCHAR USING COMPRESSION zstd
);
INSERT INTO other_records_3
SELECT record_id, recorded_at, event_name, rest->>'$."otlp.traceId"', rest->>'$."otlp.spanId"', body,
       nullif(json_merge_patch(rest::JSON, '{"otlp.traceId": null, "otlp.spanId": null}')::VARCHAR, '{}')
FROM other_records;
DROP TABLE other_records;
ALTER TABLE other_records_3 RENAME TO other_records;

ALTER TABLE call_rows ADD COLUMN from_records BOOLEAN DEFAULT false;
ALTER TABLE call_rows ADD COLUMN prompt_id VARCHAR;
