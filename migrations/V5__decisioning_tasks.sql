-- The AdCP Python SDK's task table: created where absent, otherwise only given our triggers.
-- It goes where search_path points, as the SDK's own statements do.

SELECT taskbell.create_task_table('decisioning_tasks');

INSERT INTO taskbell.schema_version (version, name) VALUES (5, 'decisioning_tasks');
