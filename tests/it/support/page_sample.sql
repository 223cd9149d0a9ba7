-- A morning at a seller, for the pictures of the page. No daemon touches it: what is owed is not due.
INSERT INTO decisioning_tasks (task_id, account_id, task_type, state, created_at, updated_at)
SELECT 'task_' || substr(md5(n::text), 1, 16), account, kind, state, extract(epoch FROM now() - age::interval), 0
FROM (VALUES
    (1, 'northwind', 'create_media_buy', 'submitted', '1 day 5 hours 12 minutes'),
    (2, 'acme_media', 'sync_creatives', 'working', '6 hours 41 minutes'),
    (3, 'acme_media', 'create_media_buy', 'submitted', '2 hours 3 minutes'),
    (4, 'lumen', 'update_media_buy', 'input-required', '48 minutes'),
    (5, 'northwind', 'activate_signal', 'submitted', '9 minutes'),
    (6, 'lumen', 'create_media_buy', 'submitted', '34 seconds'),
    (11, 'acme_media', 'create_media_buy', 'submitted', '3 hours'),
    (12, 'lumen', 'sync_creatives', 'submitted', '4 hours'),
    (13, 'northwind', 'create_media_buy', 'submitted', '5 hours'),
    (14, 'northwind', 'update_media_buy', 'submitted', '6 hours')
) AS t(n, account, kind, state, age);
SELECT taskbell.register_webhook('task_' || substr(md5(n::text), 1, 16),
                                 jsonb_build_object('url', url, 'operation_id', 'op_' || n))
FROM (VALUES (1, 'https://hooks.northwind.example/adcp'), (2, 'https://agent.acme-media.example/webhooks'),
             (3, 'https://agent.acme-media.example/webhooks'), (4, 'https://lumen.example/adcp/tasks'),
             (6, 'https://lumen.example/adcp/tasks'), (11, 'https://agent.acme-media.example/webhooks'),
             (12, 'https://lumen.example/adcp/tasks'), (13, 'https://hooks.northwind.example/adcp'),
             (14, 'https://hooks.northwind.example/adcp')) AS r(n, url);
-- In one transaction, so that nothing is owed to a daemon before it is put off.
BEGIN;
UPDATE decisioning_tasks SET state = 'completed', result = '{}'
WHERE task_id IN (SELECT 'task_' || substr(md5(n::text), 1, 16) FROM generate_series(11, 14) AS n);
UPDATE taskbell.outbox SET state = 'invalid', available_at = NULL, last_reason = 'gone', last_status = 410, attempt_count = 1,
       occurred_at = now() - interval '2 hours', first_attempt_at = now() - interval '2 hours', retry_until = now() + interval '22 hours'
WHERE lane LIKE '%lumen%';
UPDATE taskbell.outbox SET attempt_count = 6, available_at = now() + interval '1 hour', last_reason = 'timeout',
       occurred_at = now() - interval '71 minutes', first_attempt_at = now() - interval '71 minutes', retry_until = now() + interval '22 hours'
WHERE lane LIKE '%northwind%';
UPDATE taskbell.outbox SET available_at = now() + interval '1 hour' WHERE lane LIKE '%acme%';
INSERT INTO taskbell.circuit (lane, account_id, failures, pauses, closed_until, last_reason)
VALUES ('https://hooks.northwind.example:443', 'northwind', 6, 4, now() + interval '3 minutes 20 seconds', 'timeout');
INSERT INTO taskbell.transition (outbox_id, watch_id, task_id, task_type, to_state, occurred_at, delivery, url)
SELECT 1000 + n, 1, 'task_' || substr(md5(n::text), 1, 16), 'create_media_buy', 'completed', now(), 'delivered', url
FROM (VALUES (21, 'https://lumen.example/adcp/tasks'), (22, 'https://hooks.northwind.example/adcp'),
             (23, 'https://agent.acme-media.example/webhooks')) AS d(n, url);
INSERT INTO taskbell.attempt (outbox_id, task_id, idempotency_key, attempt, started_at, duration_ms, status, reason, verdict, recorded_at)
SELECT coalesce(o.id, 1000 + a.n), 'task_' || substr(md5(a.n::text), 1, 16), 'whk', a.attempt, now() - a.ago::interval, a.ms, a.status, a.reason, a.verdict,
       now() - a.ago::interval
FROM (VALUES (12, 1, '20 seconds', 143, 410, 'gone', 'dead_letter'), (21, 1, '2 minutes', 88, 200, NULL, 'acknowledge'),
             (13, 6, '4 minutes', 30000, NULL, 'timeout', 'release'), (22, 2, '9 minutes', 64, 204, NULL, 'acknowledge'),
             (22, 1, '10 minutes', 512, 503, 'server_error', 'release'), (23, 1, '31 minutes', 97, 200, NULL, 'acknowledge')
) AS a(n, attempt, ago, ms, status, reason, verdict)
LEFT JOIN taskbell.outbox o ON o.task_id = 'task_' || substr(md5(a.n::text), 1, 16) AND o.lane IS NOT NULL;
COMMIT;
