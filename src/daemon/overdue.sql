-- One query per watched table of tasks: notes those that have been open past the limit of their
-- type ($1 types, $2 seconds, $3 rows at most) and gives the ones that were not noted before.
SELECT format(
    'WITH late AS (
         SELECT t.%2$I::text AS task_id, t.%3$I::text AS task_type, extract(epoch FROM now() - a.at) AS seconds
         FROM (SELECT * FROM %1$s WHERE %4$s) t
         CROSS JOIN LATERAL (SELECT %5$s AS at) a
         JOIN unnest($1::text[], $2::float8[]) AS l(task_type, seconds) ON l.task_type = t.%3$I::text
         WHERE extract(epoch FROM now() - a.at) > l.seconds
           AND NOT EXISTS (SELECT FROM taskbell.overdue o WHERE o.watch_id = %6$s AND o.task_id = t.%2$I::text)
         ORDER BY a.at LIMIT $3::bigint
     ), noted AS (
         INSERT INTO taskbell.overdue (watch_id, task_id) SELECT %6$s, task_id FROM late
         ON CONFLICT DO NOTHING RETURNING task_id
     )
     SELECT late.task_id, late.task_type, late.seconds::float8 FROM late JOIN noted USING (task_id)',
    w.relation, w.id_column, w.type_column, taskbell.open_condition(w.relation, w.state_column),
    CASE WHEN c.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
         THEN format('t.%I::timestamptz', w.created_column)
         ELSE format('CASE WHEN t.%1$I BETWEEN 0 AND 253402300799 THEN to_timestamp(t.%1$I) END', w.created_column) END,
    w.watch_id)
FROM taskbell.watched_table w
JOIN pg_class r ON r.oid = w.relation AND w.profile <> 'adcp-python-outbox'
JOIN pg_attribute c ON c.attrelid = w.relation AND c.attname = w.created_column AND NOT c.attisdropped
