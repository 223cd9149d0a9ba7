-- Tasks by id, as far as our own tables know them: what is owed, what happened, who registered.
-- $1 task id
SELECT watch_id, task_id FROM taskbell.registration WHERE task_id = $1
UNION SELECT watch_id, task_id FROM taskbell.outbox WHERE task_id = $1
UNION SELECT watch_id, task_id FROM taskbell.transition WHERE task_id = $1
ORDER BY 1
