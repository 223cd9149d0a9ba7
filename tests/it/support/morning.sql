-- A morning at a seller, for the picture of the dashboard: `beat` is called four times a second.
CREATE SEQUENCE task;

-- Issues a task now and then, some hours old, and has as many decided.
CREATE PROCEDURE beat(good text, bad text, gone text, decided int) LANGUAGE plpgsql AS $$
DECLARE
    id text := 'task_' || nextval('task');
    kind text := (ARRAY['create_media_buy', 'create_media_buy', 'sync_creatives', 'update_media_buy'])[1 + floor(random() * 4)];
    -- Media buys take people longest.
    hours float := CASE kind WHEN 'create_media_buy' THEN 1.5 WHEN 'sync_creatives' THEN 0.4 ELSE 0.8 END * exp(2 * random() - 0.7);
BEGIN
    INSERT INTO decisioning_tasks (task_id, account_id, task_type, created_at, updated_at)
    VALUES (id, 'acct_' || floor(random() * 5), kind, extract(epoch FROM now()) - hours * 3600, 0);
    PERFORM taskbell.register_webhook(id, jsonb_build_object('operation_id', id, 'url',
        CASE WHEN random() < 0.01 THEN gone WHEN random() < 0.35 THEN bad ELSE good END));
    UPDATE decisioning_tasks SET state = 'working' WHERE task_id IN (
        SELECT task_id FROM decisioning_tasks WHERE state = 'submitted' ORDER BY random() LIMIT decided);
    UPDATE decisioning_tasks
    SET state = CASE WHEN random() < 0.9 THEN 'completed' ELSE 'failed' END, result = '{}',
        error = '{"code": "POLICY_VIOLATION", "message": "no"}'
    WHERE task_id IN (
        SELECT task_id FROM decisioning_tasks WHERE state = 'working' ORDER BY random() LIMIT decided);
END $$;
