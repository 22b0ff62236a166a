-- The calls that are in no group, each once.
-- In:  aligned_members
-- Out: call_id, reason
-- A call that fills other groups may have been left out of several, for different reasons.
SELECT call_id, min(reason) AS reason
FROM aligned_members
WHERE reason IS NOT NULL
  AND call_id NOT IN (SELECT call_id FROM aligned_members WHERE reason IS NULL)
GROUP BY call_id
