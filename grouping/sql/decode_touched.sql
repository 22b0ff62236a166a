-- In: plain_spans, plain_rollout_starts, plain_rollout_ends, plain_scores
-- Out: the rollouts and the calls that they say something about
SELECT rollout_id, NULL AS call_id FROM plain_spans
UNION
SELECT rollout_id, NULL FROM plain_rollout_starts
UNION
SELECT rollout_id, NULL FROM plain_rollout_ends
UNION
SELECT rollout_id, call_id FROM plain_scores;
