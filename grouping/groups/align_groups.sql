-- Calls that share a key become one row: a group and the list of its members, in the order of rollouts.
-- Members as a list make order, selection and statistics work within a row; windows over the calls take twice as long.
-- What orders a rollout's calls is in a member only where it is not in the key: each field costs a copy, three times.
-- In:  $previous (calls)
-- Out: the key, reason, members; calls that were left out are lists of their own, by reason
SELECT
    $group_key, reason,
    list_sort(list({
        'rollout_index': rollout_index, 'rollout_id': rollout_id,
        $order_in_group, 'call_id': call_id, 'reward': reward
    })) AS members
FROM $previous
GROUP BY ALL
