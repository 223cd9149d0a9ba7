-- Roles that may do what they must and nothing else. Run it as the owner of the schema `taskbell`,
-- after `taskbell migrate`; give each a password or another way to log in.

-- The daemon: delivers, and keeps house. It never writes to a task table but where
-- [tasks.fail_after] is set; then also GRANT UPDATE ON decisioning_tasks.
CREATE ROLE taskbell_daemon LOGIN;
GRANT USAGE ON SCHEMA taskbell TO taskbell_daemon;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA taskbell TO taskbell_daemon;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA taskbell TO taskbell_daemon;
GRANT SELECT ON decisioning_tasks TO taskbell_daemon;
-- To see transactions of others that hold back vacuum, for taskbell_database_oldest_xmin_seconds and
-- `check`. It also shows what they run. Only a superuser or who has it WITH ADMIN OPTION may grant
-- it; without it everything else works, and the gauge is NaN.
GRANT pg_read_all_stats TO taskbell_daemon;

-- A seller's server: its own table. The triggers and register_webhook act for it.
CREATE ROLE seller LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON decisioning_tasks TO seller;

-- An operator who looks: views without secrets, URLs without queries and tokens.
CREATE ROLE taskbell_reader LOGIN;
GRANT USAGE ON SCHEMA taskbell TO taskbell_reader;
GRANT SELECT ON taskbell.delivery, taskbell.timeline, taskbell.webhook_activity, taskbell.attempt,
    taskbell.circuit, taskbell.watched_table TO taskbell_reader;
