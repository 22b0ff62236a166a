"""Names of the attributes and records that the spool carries: declared once, read by the store.

Spans use `gen_ai.*` for what OpenTelemetry's GenAI conventions name and `tracetune.*`
for the rest. The constants stand here because the Python package of the conventions has
marked its own as moved. What is not a span is an OTLP log record: its `eventName` is one
of the `RECORD_*` names, its attributes carry `RECORD_ID` and the scope, and its body is
one JSON object as a string.
"""

from __future__ import annotations

# What a span is: "program", "module", "tool" or "lm".
KIND = "tracetune.kind"

# The scope that a span started in.
RUN = "tracetune.run"
SPLIT = "tracetune.split"
STEP = "tracetune.step"
ROLLOUT_ID = "tracetune.rollout_id"
EXAMPLE_ID = "tracetune.example_id"
POLICY_VERSION = "tracetune.policy_version"
MODULE = "tracetune.module"
KEY = "tracetune.key"
# The span id, in hex, of the module's execution that a span belongs to (its own for a module span).
EXECUTION = "tracetune.execution"
# 0-based ordinal at entry of an execution within (rollout, module, key); the store makes
# it dense over the executions that made a call.
INVOCATION = "tracetune.invocation"
# 0-based ordinal of an LM call within its execution.
TURN = "tracetune.turn"
# True on executions (and their calls) that overlapped another of the same module and key.
UNORDERED = "tracetune.unordered"
# The span id of the enclosing LM span, where two instrumentations report one call.
LM_PARENT = "tracetune.lm_parent"
# "call", or "score" for what a reward function calls.
CALL_KIND = "tracetune.call_kind"
# True on spans that ended after their rollout was closed.
LATE = "tracetune.late"
# Names of the attributes of this span that were shortened.
TRUNCATED = "tracetune.truncated"
# Names of the attributes of this span that hold a prompt or an answer and were changed by redaction.
REDACTED = "tracetune.redacted"
# Arguments and result of a decorated function, as JSON.
INPUT = "tracetune.input"
OUTPUT = "tracetune.output"
# Why a span failed: the exception's qualified name, or "interrupted" for a call that nobody ended; and "format_error"
# where it was one, "interrupted" for an execution that was still open when its process ended.
ERROR_TYPE = "error.type"
STATUS = "tracetune.status"

# GenAI conventions (the names that are current in 2026).
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
INPUT_MESSAGES = "gen_ai.input.messages"
OUTPUT_MESSAGES = "gen_ai.output.messages"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
TOP_K = "gen_ai.request.top_k"
MAX_TOKENS = "gen_ai.request.max_tokens"
SEED = "gen_ai.request.seed"
STOP = "gen_ai.request.stop_sequences"
CHOICE_COUNT = "gen_ai.request.choice.count"

# By these two, other conventions say that a span is an LM call; the store knows the rest of their names.
OPENINFERENCE_KIND = "openinference.span.kind"
TRACELOOP_REQUEST = "llm.request.type"

# Records. Every one has RECORD_ID; RUN, SPLIT, STEP and ROLLOUT_ID where they apply.
RECORD_ID = "tracetune.record_id"
# {rollout_id, run, split, step, index, program, example_id, input, policy_version, pid, process}: written once,
# when the rollout's program starts (or at the first thing that is recorded in its block, where that comes before)
RECORD_ROLLOUT = "tracetune.rollout"
# {rollout_id, status, error_type, output}: written when a `rollout` block ends or is closed from outside
RECORD_ROLLOUT_CLOSED = "tracetune.rollout.closed"
# the fields of `types.Completion`
RECORD_COMPLETION = "tracetune.completion"
# {rollout_id, call_id, module, name, value, source, feedback}
RECORD_SCORE = "tracetune.score"
# {version, step, trainer, model, prompts}
RECORD_POLICY = "tracetune.policy"
# {step, policy_version, members: [{group_id, slot, call_id, rollout_id, reward, advantage}], left_out, report}
RECORD_BATCH = "tracetune.batch"
# {job_id, provider, status, detail}
RECORD_JOB = "tracetune.job"
# {run, from_step}: rollouts of the run from that step on, recorded before this, never reached a checkpoint
RECORD_SUPERSEDE = "tracetune.supersede"

# Request headers by which a call's module and id reach the policy endpoint.
HEADER_MODULE = "x-tracetune-module"
HEADER_CALL = "x-tracetune-call"
