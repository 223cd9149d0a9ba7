-- The task table once more: as it is without us, and with the trigger that one would write first.
CREATE SEQUENCE next_task;
CREATE TABLE bare_tasks (LIKE decisioning_tasks INCLUDING ALL);
CREATE TABLE noisy_tasks (LIKE decisioning_tasks INCLUDING ALL);
CREATE TABLE noisy_outbox (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, task_id text, document jsonb);
CREATE FUNCTION notify_of_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO noisy_outbox (task_id, document) VALUES (new.task_id, new.result);
    PERFORM pg_notify('noise', '');
    RETURN NULL;
END $$;
CREATE TRIGGER notify_of_task AFTER UPDATE ON noisy_tasks FOR EACH ROW EXECUTE FUNCTION notify_of_task();
