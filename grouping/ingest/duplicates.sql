-- In: a table, whose new rows are those after a given one; what a row of it is known by
-- Out: the new rows whose id stands more than once: row; place, counted from 0 over all new rows;
--      is_repeated, whether an earlier row has the same content; is_known, whether one has the same id
WITH new_rows AS (
    SELECT rowid AS row, row_number() OVER (ORDER BY rowid) - 1 AS place
    FROM $table
    WHERE rowid > $last
),
known AS (
    SELECT $ids
    FROM $table
    SEMI JOIN (SELECT $ids FROM $table WHERE rowid > $last) USING ($ids)
    GROUP BY ALL
    HAVING count(*) > 1
),
contents AS (
    SELECT $ids, rowid AS row, hash(*COLUMNS(*)) AS content
    FROM $table
    SEMI JOIN known USING ($ids)
),
compared AS (
    SELECT row,
           row_number() OVER (PARTITION BY $ids, content ORDER BY row) > 1 AS is_repeated,
           row_number() OVER (PARTITION BY $ids ORDER BY row) > 1 AS is_known
    FROM contents
)
SELECT row, place, is_repeated, is_known
FROM new_rows
JOIN compared USING (row)
