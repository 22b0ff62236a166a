-- In: the spans of LM calls in `lines` as `decode_spans.sql` reads them
-- Out: number, the columns of `spans`; messages, completions and finish_reasons in their order, and
--      what else a call needs; is_plain
WITH lm_spans AS (
    $spans
),
read AS (
    SELECT *,
           try(from_json(input_messages, '[{
               "role": "VARCHAR", "parts": [{"content": "VARCHAR"}]
           }]')) AS asked,
           try(from_json(output_messages, '[{
               "role": "VARCHAR", "parts": [{"content": "VARCHAR"}], "finish_reason": "VARCHAR"
           }]')) AS answered
    FROM lm_spans
)
SELECT * EXCLUDE (
           input_messages, output_messages, asked, answered, temperature, top_p, top_k, max_tokens, seed, stop
       ) REPLACE (
           list_transform(answered, lambda message, place: coalesce(
               nullif(message.finish_reason, ''), nullif(finish_reasons[place], '')
           )) AS finish_reasons,
           is_plain AND coalesce(
               (len(answered) > 0 OR finish_reasons IS NULL)
               -- Texts and nothing but texts: written again they are what was recorded.
               AND to_json(list_transform(asked, lambda message: {
                   'role': message.role, 'parts': [{'type': 'text', 'content': message.parts[1].content}]
               }))::VARCHAR IS NOT DISTINCT FROM input_messages
               AND to_json(list_transform(answered, lambda message: {
                   'role': message.role, 'parts': [{'type': 'text', 'content': message.parts[1].content}],
                   'finish_reason': message.finish_reason
               }))::VARCHAR IS NOT DISTINCT FROM output_messages,
               false
           ) AS is_plain
       ),
       to_json(list_transform(asked, lambda message: {
           'role': message.role, 'content': message.parts[1].content
       }))::VARCHAR AS messages,
       list_transform(answered, lambda message: message.parts[1].content) AS completions,
       nullif('{' || concat_ws(
           ',', '"temperature":' || to_json(temperature), '"top_p":' || to_json(top_p), '"top_k":' || top_k,
           '"max_tokens":' || max_tokens, '"seed":' || seed, '"stop":' || to_json(stop)
       ) || '}', '{}') AS sampling
FROM read
