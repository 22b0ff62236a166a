-- Calls and completions know whether redaction changed their texts; nothing did before this was recorded.

ALTER TABLE spans ADD COLUMN redacted VARCHAR[];
ALTER TABLE call_rows ADD COLUMN redacted BOOLEAN DEFAULT false;
ALTER TABLE completions ADD COLUMN redacted BOOLEAN;
