-- In: new_rows, batches with their members as JSON
-- Out: batch_members, one row a member
INSERT INTO batch_members BY NAME
SELECT record_id, unnest(members, recursive := true)
FROM (
    SELECT DISTINCT ON (record_id) record_id, from_json(members, '[{
        "group_id": "VARCHAR", "slot": "BIGINT", "call_id": "VARCHAR", "rollout_id": "VARCHAR",
        "reward": "DOUBLE", "advantage": "DOUBLE"
    }]') AS members
    FROM new_rows
    ANTI JOIN batch_members USING (record_id)
);
