-- The task table once more: as it is without us, with a trigger that does nothing, and with those that one would
-- write first.
CREATE SEQUENCE next_task;
CREATE TABLE bare_tasks (LIKE decisioning_tasks INCLUDING ALL);
CREATE TABLE calm_tasks (LIKE decisioning_tasks INCLUDING ALL);
CREATE TABLE narrow_tasks (LIKE decisioning_tasks INCLUDING ALL);
CREATE TABLE noisy_tasks (LIKE decisioning_tasks INCLUDING ALL);
CREATE TABLE noisy_outbox (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, task_id text, document jsonb);
CREATE FUNCTION nothing_of_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END $$;
CREATE FUNCTION record_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO noisy_outbox (task_id, document) VALUES (new.task_id, new.result);
    RETURN NULL;
END $$;
CREATE FUNCTION notify_of_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO noisy_outbox (task_id, document) VALUES (new.task_id, new.result);
    PERFORM pg_notify('noise', '');
    RETURN NULL;
END $$;
CREATE TRIGGER nothing_of_task AFTER UPDATE ON calm_tasks FOR EACH ROW EXECUTE FUNCTION nothing_of_task();
CREATE TRIGGER record_task AFTER UPDATE ON narrow_tasks FOR EACH ROW EXECUTE FUNCTION record_task();
CREATE TRIGGER notify_of_task AFTER UPDATE ON noisy_tasks FOR EACH ROW EXECUTE FUNCTION notify_of_task();
