"""OpenTelemetry's protocol, in and out: a receiver, files, and sending to other backends.

Whatever comes in is written to the spool, as the tracer's own spans are. The packages
that this needs come with `pip install 'tracetune[otlp]'`.
"""

from tracetune.adapters.otlp.receiver import Receiver
from tracetune.adapters.otlp.sender import Sender, Sent

__all__ = ["Receiver", "Sender", "Sent"]
