-- The quick way for the records that every rollout has: a body whose fields all have a column, of
-- the column's own type, and scope attributes beside it. Every other record is left to the
-- decoder in Python, which means the same by them; a test holds the two against each other.
-- In: lines(number, stretch, line), where a line is a log record alone of one event
-- Out: number, the columns of its table, is_plain
WITH records AS (
    SELECT number, try(from_json(line, '{
               "timeUnixNano": "BIGINT", "eventName": "VARCHAR", "body": {"stringValue": "VARCHAR"},
               "attributes": [{"key": "VARCHAR", "value": {"stringValue": "VARCHAR", "intValue": "BIGINT"}}]
           }')) AS record
    FROM lines
),
read AS (
    SELECT number, record.eventName AS event_name, make_timestamp_ns(record.timeUnixNano) AS recorded_at,
           list_transform(record.attributes, lambda attribute: attribute.key) AS names,
           list_transform(record.attributes, lambda attribute: attribute.value.stringValue) AS texts,
           list_transform(record.attributes, lambda attribute: attribute.value.intValue) AS wholes,
           try(from_json(record.body.stringValue, '$shape')) AS fields,
           len(try(json_keys(record.body.stringValue))) AS n_fields,
           try(json_type(record.body.stringValue, $paths)) AS types
    FROM records
)
SELECT number, texts[list_position(names, '$record_id')] AS record_id, recorded_at,
       $columns,
       nullif('{' || concat_ws(',', $rest) || '}', '{}') AS rest,
       coalesce(
           event_name = '$event'
           AND recorded_at IS NOT NULL
           AND texts[list_position(names, '$record_id')] <> ''
           -- Each attribute is one of the scope's, and is there once.
           AND len(names) = $n_known
           AND n_fields = $n_taken
           AND $is_plain,
           false
       ) AS is_plain
FROM read
