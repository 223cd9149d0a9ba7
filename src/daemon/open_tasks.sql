-- One query per watched table that still exists: open tasks by type and state, the age of the
-- oldest, and how many are older than the limit of their type ($1 types, $2 limits in seconds).
SELECT format(
    'SELECT t.%2$I::text, t.%3$I::text, count(*), coalesce(extract(epoch FROM now() - min(a.at)), 0)::float8,
            count(*) FILTER (WHERE extract(epoch FROM now() - a.at) > l.seconds)
     FROM (SELECT * FROM %1$s WHERE %5$s) t
     CROSS JOIN LATERAL (SELECT %4$s AS at) a
     LEFT JOIN unnest($1::text[], $2::float8[]) AS l(task_type, seconds) ON l.task_type = t.%2$I::text
     GROUP BY 1, 2',
    w.relation, w.type_column, w.state_column,
    CASE WHEN c.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
         THEN format('t.%I::timestamptz', w.created_column)
         WHEN w.created_column IS NULL THEN 'NULL::timestamptz'
         ELSE format('CASE WHEN t.%1$I BETWEEN 0 AND 253402300799 THEN to_timestamp(t.%1$I) END', w.created_column) END,
    taskbell.open_condition(w.relation, w.state_column))
FROM taskbell.watched_table w
JOIN pg_class r ON r.oid = w.relation AND w.profile <> 'adcp-python-outbox'
LEFT JOIN pg_attribute c ON c.attrelid = w.relation AND c.attname = w.created_column AND NOT c.attisdropped
