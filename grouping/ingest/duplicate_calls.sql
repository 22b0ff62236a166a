-- In: call_rows, whose new rows are those after a given one
-- Out: call_rows without new rows whose call stands there once already
DELETE FROM call_rows
WHERE rowid IN (
    SELECT row
    FROM (
        SELECT rowid AS row, row_number() OVER (PARTITION BY call_id ORDER BY rowid > $last, $columns) AS nth
        FROM call_rows
        WHERE call_id IN (SELECT call_id FROM call_rows WHERE rowid > $last)
    )
    WHERE nth > 1
);
