-- One statement per watched table: forgets what has ended since, or is gone.
SELECT format(
    'DELETE FROM taskbell.overdue o WHERE o.watch_id = %1$s AND NOT EXISTS (
         SELECT FROM (SELECT * FROM %2$s WHERE %4$s) t WHERE t.%3$I::text = o.task_id)',
    w.watch_id, w.relation, w.id_column, taskbell.open_condition(w.relation, w.state_column))
FROM taskbell.watched_table w
JOIN pg_class r ON r.oid = w.relation AND w.profile <> 'adcp-python-outbox'
