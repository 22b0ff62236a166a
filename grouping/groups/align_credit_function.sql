-- What a credit function gave each call, in place of the rollout's reward.
-- In:  $previous (calls), call_credits (call_id, credit): no row for calls that the function was not asked about
-- Out: the same calls with the reward that they earned
SELECT calls.* REPLACE (coalesce(credit, reward) AS reward)
FROM $previous AS calls
LEFT JOIN call_credits USING (call_id)
