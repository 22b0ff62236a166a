-- The quick way for the records that every rollout has: a body whose fields all have a column, of
-- the column's own type, and scope attributes beside it. Every other record is left to the
-- decoder in Python, which means the same by them; a test holds the two against each other.
-- In: lines(number, line), where a line is the log record alone
-- Out: plain_records(number, event_name, recorded_at; the attributes as lists; the body's fields,
--      how many they are, and the JSON type of each that a column knows)
CREATE OR REPLACE TEMP TABLE plain_records AS
WITH records AS (
    SELECT number, try(from_json(line, '{
               "timeUnixNano": "BIGINT", "eventName": "VARCHAR", "body": {"stringValue": "VARCHAR"},
               "attributes": [{"key": "VARCHAR", "value": {"stringValue": "VARCHAR", "intValue": "BIGINT"}}]
           }')) AS record
    FROM lines
)
SELECT number, record.eventName AS event_name, make_timestamp_ns(record.timeUnixNano) AS recorded_at,
       list_transform(record.attributes, lambda attribute: attribute.key) AS names,
       list_transform(record.attributes, lambda attribute: attribute.value.stringValue) AS texts,
       list_transform(record.attributes, lambda attribute: attribute.value.intValue) AS wholes,
       try(from_json(record.body.stringValue, '$shape')) AS fields,
       len(try(json_keys(record.body.stringValue))) AS n_fields,
       try(json_type(record.body.stringValue, $paths)) AS types
FROM records;
