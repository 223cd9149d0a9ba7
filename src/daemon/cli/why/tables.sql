-- One query per watched table of tasks: the task of id $1, without its documents.
SELECT w.watch_id, w.relation::text, format(
    'SELECT jsonb_build_object(''state'', t.%2$I::text, ''task_type'', t.%3$I::text, ''account_id'', %4$s,
                               ''created_at'', %5$s, ''sdk_registered'', %6$s)
     FROM %1$s t WHERE t.%7$I = $1::text::%8$s',
    w.relation, w.state_column, w.type_column,
    coalesce('t.' || quote_ident(w.account_column) || '::text', 'NULL'),
    CASE WHEN c.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
         THEN format('t.%I::timestamptz', w.created_column)
         WHEN w.created_column IS NULL THEN 'NULL'
         ELSE format('CASE WHEN t.%1$I BETWEEN 0 AND 253402300799 THEN to_timestamp(t.%1$I) END', w.created_column) END,
    CASE WHEN w.profile = 'adcp-python' AND EXISTS (SELECT FROM pg_attribute s WHERE s.attrelid = w.relation
              AND s.attname = 'webhook_registration' AND NOT s.attisdropped)
         THEN 't.webhook_registration IS NOT NULL' ELSE 'false' END,
    w.id_column, format_type(i.atttypid, i.atttypmod))
FROM taskbell.watched_table w
JOIN pg_class r ON r.oid = w.relation AND w.profile <> 'adcp-python-outbox'
JOIN pg_attribute i ON i.attrelid = w.relation AND i.attname = w.id_column AND NOT i.attisdropped
LEFT JOIN pg_attribute c ON c.attrelid = w.relation AND c.attname = w.created_column AND NOT c.attisdropped
ORDER BY w.watch_id
