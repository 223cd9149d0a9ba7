-- The watched tables that this role may not read, and their schemas that it may not use.
SELECT 'SELECT', w.relation::text
FROM taskbell.watched_table w JOIN pg_class c ON c.oid = w.relation
WHERE w.profile <> 'adcp-python-outbox' AND NOT has_table_privilege(w.relation, 'SELECT')
UNION
SELECT 'USAGE', 'SCHEMA ' || c.relnamespace::regnamespace
FROM taskbell.watched_table w JOIN pg_class c ON c.oid = w.relation
WHERE NOT has_schema_privilege(c.relnamespace, 'USAGE')
ORDER BY 2
