-- One query per watched table of tasks: the oldest open ones (20 at most), how many there are in
-- all, and the place of each. No documents.
SELECT format(
    'SELECT jsonb_build_object(
         ''task_id'', o.task_id, ''task_type'', o.task_type, ''account_id'', o.account_id, ''state'', o.state,
         ''age'', extract(epoch FROM now() - o.at),
         ''url'', (SELECT taskbell.shown_url(r.url) FROM taskbell.registration r
                   WHERE r.watch_id = %7$s AND r.task_id = o.task_id)), o.n, row_number() OVER ()
     FROM (
         SELECT t.%2$I::text AS task_id, t.%3$I::text AS task_type, %4$s AS account_id, t.%5$I::text AS state, a.at,
                (SELECT count(*) FROM %1$s WHERE %6$s) AS n
         FROM (SELECT * FROM %1$s WHERE %6$s) t CROSS JOIN LATERAL (SELECT %8$s AS at) a
         ORDER BY a.at LIMIT 20
     ) o ORDER BY o.at',
    w.relation, w.id_column, w.type_column, coalesce('t.' || quote_ident(w.account_column) || '::text', 'NULL'),
    w.state_column, taskbell.open_condition(w.relation, w.state_column), w.watch_id,
    CASE WHEN c.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
         THEN format('t.%I::timestamptz', w.created_column)
         WHEN w.created_column IS NULL THEN 'NULL::timestamptz'
         ELSE format('CASE WHEN t.%1$I BETWEEN 0 AND 253402300799 THEN to_timestamp(t.%1$I) END', w.created_column) END)
FROM taskbell.watched_table w
JOIN pg_class r ON r.oid = w.relation AND w.profile <> 'adcp-python-outbox'
LEFT JOIN pg_attribute c ON c.attrelid = w.relation AND c.attname = w.created_column AND NOT c.attisdropped
