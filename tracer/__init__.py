"""The program's side: decorators, the ambient scope, capture, and the spool.

Decorated functions and LM calls become OpenTelemetry spans, written as they end to the
spool beside a store. Nothing here knows the store, a trainer or an LM client.
"""

from tracetune.tracer.calls import Choice, LMCall
from tracetune.tracer.decorators import is_program, module, program, tool
from tracetune.tracer.executions import Node, OpenExecution
from tracetune.tracer.handles import RolloutHandle
from tracetune.tracer.made_calls import record_call
from tracetune.tracer.outcomes import count_as_format_error
from tracetune.tracer.paths import checkpoints_folder, spool_folder, store_path
from tracetune.tracer.recordings import Recording, StartedRecording, recording, start_recording
from tracetune.tracer.rollouts import entered, new_rollout, policy, rollout
from tracetune.tracer.scores import reward, scoring
from tracetune.tracer.spool import Spool, SpoolCounts

__all__ = [
    "Choice",
    "LMCall",
    "Node",
    "OpenExecution",
    "Recording",
    "RolloutHandle",
    "Spool",
    "SpoolCounts",
    "StartedRecording",
    "checkpoints_folder",
    "count_as_format_error",
    "entered",
    "is_program",
    "module",
    "new_rollout",
    "policy",
    "program",
    "record_call",
    "recording",
    "reward",
    "rollout",
    "scoring",
    "spool_folder",
    "start_recording",
    "store_path",
    "tool",
]
