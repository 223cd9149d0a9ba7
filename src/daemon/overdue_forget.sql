-- One statement per watched table: forgets what has ended since, or is gone.
SELECT format(
    'DELETE FROM taskbell.overdue o WHERE o.watch_id = %1$s AND NOT EXISTS (
         SELECT FROM %2$s t WHERE t.%3$I::text = o.task_id
           AND t.%4$I::text IN (''submitted'', ''working'', ''input-required'', ''auth-required''))',
    w.watch_id, w.relation, w.id_column, w.state_column)
FROM taskbell.watched_table w
JOIN pg_class r ON r.oid = w.relation AND w.profile <> 'adcp-python-outbox'
