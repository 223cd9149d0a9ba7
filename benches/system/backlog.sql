-- $1 webhooks, round 2,000 destinations, due $2 seconds from now
WITH task AS (
    SELECT format('%s.%s', $2::float8, i) AS id, 'https://' || (i % 2000) || '.example:443' AS lane
    FROM generate_series(1, $1::bigint) AS i
), registered AS (
    INSERT INTO taskbell.registration (watch_id, task_id, account_id, task_type, url, operation_id, lane)
    SELECT 1, id, 'acct', 'create_media_buy', lane || '/', 'op', lane FROM task
)
INSERT INTO taskbell.outbox (watch_id, task_id, account_id, task_type, from_state, to_state, lane, idempotency_key,
                             document, available_at)
SELECT 1, id, 'acct', 'create_media_buy', 'working', 'completed', lane, gen_random_uuid(),
       jsonb_build_object('media_buy_id', id, 'padding', repeat('x', 200)), now() + $2::float8 * interval '1 second'
FROM task
