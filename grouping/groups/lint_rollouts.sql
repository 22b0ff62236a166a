-- Rollouts in scope that give a trainer nothing to compare, whatever their calls are.
-- In:  rollouts_in_scope
-- Out: no_calls, unserialisable_examples
SELECT
    count(*) FILTER (n_calls = 0) AS no_calls,
    count(*) FILTER (starts_with(example_id, 'unserialisable-')) AS unserialisable_examples
FROM rollouts_in_scope
