-- In: touched(rollout_id), live_processes(process), live_pids(pid); everything recorded of those rollouts
-- Out: rollout_rows, their rows made anew
DELETE FROM rollout_rows WHERE rollout_id IN (FROM touched);

-- Of several the first row is looked for by its number alone: what is wide is read of that one.
INSERT INTO rollout_rows BY NAME
WITH starts AS (
    SELECT rollout_starts.*
    FROM rollout_starts
    JOIN (
        SELECT arg_min(rowid, (recorded_at, record_id)) AS first
        FROM rollout_starts WHERE rollout_id IN (FROM touched)
        GROUP BY rollout_id
    ) ON rollout_starts.rowid = first
),
ends AS (
    -- The first end stands: a rollout closed after a timeout stays so whatever its program does later.
    SELECT rollout_ends.*
    FROM rollout_ends
    JOIN (
        SELECT arg_min(rowid, (recorded_at, record_id)) AS first
        FROM rollout_ends WHERE rollout_id IN (FROM touched)
        GROUP BY rollout_id
    ) ON rollout_ends.rowid = first
),
roots AS (
    -- The execution of the program; where nothing is decorated, the root of the trace.
    SELECT spans.*
    FROM spans
    JOIN (
        SELECT arg_min(rowid, (kind IS DISTINCT FROM 'program', started_at, span_id)) AS first
        FROM spans
        WHERE rollout_id IN (FROM touched) AND started_at >= getvariable('since')
          AND (kind = 'program' OR parent_span_id IS NULL) AND kind IS DISTINCT FROM 'lm'
        GROUP BY rollout_id
    ) ON spans.rowid = first
    -- Said once more, so that the texts of other spans are not read.
    WHERE started_at >= getvariable('since')
      AND (kind = 'program' OR parent_span_id IS NULL) AND kind IS DISTINCT FROM 'lm'
),
call_counts AS (
    SELECT rollout_id, count(*) FILTER (kind = 'call') AS n_calls, min(prompt_id) AS prompt_id
    FROM call_rows
    WHERE NOT shadowed AND rollout_id IN (FROM touched) AND started_at >= getvariable('since')
    GROUP BY ALL
),
stamps AS (
    SELECT rollout_id, min(started_at) AS started_at, min(run) AS run, min(split) AS split, min(step) AS step,
           min(example_id) AS example_id, min(policy_version) AS policy_version
    FROM spans
    WHERE rollout_id IN (FROM touched) AND started_at >= getvariable('since')
    GROUP BY ALL
),
rewards AS (
    SELECT rollout_id, arg_max(value, (recorded_at, record_id)) AS reward
    FROM scores
    WHERE name = 'reward' AND module IS NULL AND call_id IS NULL AND rollout_id IN (FROM touched)
    GROUP BY ALL
),
joined AS (
    SELECT touched.rollout_id,
           -- A trace of some other library with neither a program nor a call is no rollout.
           starts.rollout_id IS NOT NULL OR coalesce(roots.kind = 'program', false) OR call_counts.rollout_id IS NOT NULL
               AS is_rollout,
           stamps.started_at AS first_at,
           coalesce(starts.run, roots.run, stamps.run) AS run,
           coalesce(starts.split, roots.split, stamps.split) AS split,
           coalesce(starts.step, roots.step, stamps.step) AS step,
           starts.rollout_index,
           coalesce(roots.module, roots.name, starts.program) AS program,
           coalesce(starts.example_id, roots.example_id, stamps.example_id, prompt_id, touched.rollout_id) AS example_id,
           coalesce(roots.started_at, starts.recorded_at, stamps.started_at) AS started_at,
           least(roots.ended_at, ends.recorded_at) AS ended_at,
           CASE
               WHEN ends.status IS NOT NULL THEN ends.status
               WHEN roots.status IS NOT NULL THEN roots.status
               WHEN starts.rollout_id IS NULL THEN 'ok'
               WHEN starts.process IN (FROM live_processes) THEN NULL
               WHEN starts.process IS NOT NULL OR starts.pid IS NULL OR starts.pid NOT IN (FROM live_pids) THEN 'interrupted'
           END AS status,
           CASE WHEN ends.rollout_id IS NULL THEN roots.error_type ELSE ends.error_type END AS error_type,
           rewards.reward,
           coalesce(starts.policy_version, roots.policy_version, stamps.policy_version) AS policy_version,
           coalesce(call_counts.n_calls, 0) AS n_calls,
           coalesce(roots.input, starts.input) AS input,
           CASE WHEN ends.rollout_id IS NULL THEN roots.output ELSE ends.output END AS output,
           roots.trace_id,
           starts.pid
    FROM touched
    LEFT JOIN starts USING (rollout_id)
    LEFT JOIN ends USING (rollout_id)
    LEFT JOIN roots USING (rollout_id)
    LEFT JOIN call_counts USING (rollout_id)
    LEFT JOIN stamps USING (rollout_id)
    LEFT JOIN rewards USING (rollout_id)
)
SELECT joined.* EXCLUDE (ended_at),
       (epoch_ns(ended_at) - epoch_ns(started_at)) / 1e6 AS duration_ms,
       EXISTS (
           SELECT 1 FROM supersedes
           WHERE supersedes.run = joined.run AND joined.step >= from_step AND joined.started_at < recorded_at
       ) AS superseded
FROM joined;

-- A call's example is its rollout's, and so is its reward unless it has a score of its own.
UPDATE call_rows SET reward = settled.reward, example_id = settled.example_id
FROM (
    SELECT call_rows.rollout_id, call_id, coalesce(own.reward, rollout_rows.reward) AS reward, rollout_rows.example_id
    FROM call_rows
    JOIN rollout_rows USING (rollout_id)
    LEFT JOIN (
        SELECT call_id, arg_max(value, (recorded_at, record_id)) AS reward
        FROM scores
        WHERE name = 'reward' AND module IS NULL AND call_id IS NOT NULL
        GROUP BY ALL
    ) AS own USING (call_id)
    WHERE rollout_id IN (FROM touched) AND call_rows.started_at >= getvariable('since')
) AS settled
WHERE call_rows.started_at >= getvariable('since')
  AND call_rows.rollout_id = settled.rollout_id AND call_rows.call_id = settled.call_id
  AND (call_rows.reward, call_rows.example_id) IS DISTINCT FROM (settled.reward, settled.example_id);
