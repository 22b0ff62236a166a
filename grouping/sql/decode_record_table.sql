-- In: plain_records
-- Out: plain_$table(number, the columns of `$table`), of the records called $event that are plain
CREATE OR REPLACE TEMP TABLE plain_$table AS
SELECT number, texts[list_position(names, '$record_id')] AS record_id, recorded_at,
       $columns,
       nullif('{' || array_to_string(list_filter(list_transform(
           names,
           lambda name, place: CASE WHEN name NOT IN $taken THEN
               to_json(replace(name, 'tracetune.', '')) || ':' || coalesce(to_json(texts[place])::VARCHAR, wholes[place]::VARCHAR)
           END
       ), lambda entry: entry IS NOT NULL), ',') || '}', '{}') AS rest
FROM plain_records
WHERE event_name = '$event'
  AND recorded_at IS NOT NULL
  AND texts[list_position(names, '$record_id')] <> ''
  AND list_has_all($scope, names)
  AND n_fields = $n_taken
  AND $is_plain;
