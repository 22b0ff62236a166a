-- What every module of every run has to train on, and what it lacks.
-- In:  calls_in_scope, left_out_calls, rollouts
-- Out: run, module, calls, trainable, left_out (reason to count), notes (name to count, of the trainable calls;
--      not_everywhere counts rollouts)
WITH verdicts AS (
    SELECT
        calls.run, calls.module, program, rollout_id, kind, left_out.reason,
        exact, on_policy, unordered, truncated, redacted, finish_reason, rollouts.status,
        calls.policy_version <> rollouts.policy_version AS stale
    FROM calls_in_scope AS calls
    LEFT JOIN left_out_calls AS left_out USING (call_id)
    LEFT JOIN (SELECT rollout_id, program, status, policy_version FROM rollouts) AS rollouts USING (rollout_id)
),
counted AS (
    SELECT
        run, module, count(*) AS calls, count(*) FILTER (reason IS NULL) AS trainable, histogram(reason) AS left_out,
        count(*) FILTER (reason IS NULL AND NOT exact) AS not_exact,
        count(*) FILTER (reason IS NULL AND exact AND NOT on_policy) AS not_on_policy,
        count(*) FILTER (reason IS NULL AND finish_reason = 'length') AS cut_at_limit,
        count(*) FILTER (reason IS NULL AND status = 'format_error') AS unparsed,
        count(*) FILTER (reason IS NULL AND status IN ('error', 'timeout')) AS failed,
        count(*) FILTER (reason IS NULL AND stale) AS stale_policy,
        count(*) FILTER (reason IS NULL AND unordered) AS unordered,
        count(*) FILTER (reason IS NULL AND truncated) AS shortened,
        count(*) FILTER (reason IS NULL AND redacted) AS redacted_text
    FROM verdicts
    GROUP BY run, module
),
callers AS (
    SELECT run, program, module, count(DISTINCT rollout_id) AS n_callers
    FROM verdicts
    WHERE kind = 'call'
    GROUP BY run, program, module
),
programs AS (
    SELECT run, program, count(DISTINCT rollout_id) AS n_rollouts
    FROM verdicts
    WHERE kind = 'call'
    GROUP BY run, program
),
coverage AS (
    SELECT callers.run, callers.module, sum(n_rollouts - n_callers)::BIGINT AS not_everywhere
    FROM callers
    JOIN programs
      ON callers.run IS NOT DISTINCT FROM programs.run
     AND callers.program IS NOT DISTINCT FROM programs.program
    GROUP BY callers.run, callers.module
)
SELECT
    counted.run, counted.module, calls, trainable, left_out,
    {
        'not_exact': not_exact, 'not_on_policy': not_on_policy, 'cut_at_limit': cut_at_limit, 'unparsed': unparsed,
        'failed': failed, 'stale_policy': stale_policy, 'unordered': unordered, 'shortened': shortened,
        'redacted_text': redacted_text,
        'not_everywhere': coalesce(not_everywhere, 0)
    } AS notes
FROM counted
LEFT JOIN coverage
  ON counted.run IS NOT DISTINCT FROM coverage.run
 AND counted.module IS NOT DISTINCT FROM coverage.module
