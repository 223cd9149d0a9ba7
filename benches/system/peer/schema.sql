-- The task table of the SDK, as far as this needs it, and a trigger that makes a job of each end.
CREATE TABLE tasks (
    task_id    text COLLATE "C" PRIMARY KEY,
    account_id text COLLATE "C" NOT NULL,
    state      text NOT NULL DEFAULT 'submitted',
    task_type  text NOT NULL,
    result     jsonb,
    url        text NOT NULL,
    updated_at double precision NOT NULL DEFAULT 0
);

CREATE FUNCTION owe_webhook() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM graphile_worker.add_job('deliver', json_build_object(
        'url', new.url, 'task_id', new.task_id, 'idempotency_key', 'whk_' || gen_random_uuid(),
        'timestamp', now(), 'result', new.result));
    RETURN NULL;
END $$;

CREATE TRIGGER owe_webhook AFTER UPDATE OF state ON tasks FOR EACH ROW
    WHEN (old.state IS DISTINCT FROM new.state AND new.state IN ('completed', 'failed'))
    EXECUTE FUNCTION owe_webhook();
