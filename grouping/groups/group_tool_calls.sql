-- The answers of members that call tools, as their spans have them.
-- In:  aligned_members, call_rows, spans
-- Out: call_id, choice, answers: all choices of the request, in the parts of the GenAI conventions
SELECT call_rows.call_id, call_rows.choice, attributes ->> '$."gen_ai.output.messages"' AS answers
FROM (SELECT DISTINCT call_id FROM aligned_members) AS members
JOIN call_rows USING (call_id)
JOIN spans USING (span_id)
WHERE call_rows.finish_reason IN ('tool_calls', 'function_call', 'tool_call', 'tool_use')
