-- The statements that finish the index of open tasks, which gauges and `tasks list` read: one to
-- drop what an interrupted build left, one to build it; null where there is nothing to do.
-- $1 the table
SELECT CASE WHEN NOT i.indisvalid THEN format('DROP INDEX CONCURRENTLY IF EXISTS %s', i.indexrelid::regclass) END,
       CASE WHEN i.indisvalid IS NOT TRUE THEN
           format('CREATE INDEX CONCURRENTLY %I ON %s (%I) WHERE %s',
                  'taskbell_open_' || w.watch_id, w.relation, w.type_column,
                  taskbell.open_condition(w.relation, w.state_column)) END
FROM taskbell.watched_table w
LEFT JOIN (pg_index i JOIN pg_class c ON c.oid = i.indexrelid)
    ON i.indrelid = w.relation AND c.relname = 'taskbell_open_' || w.watch_id
-- On a partitioned table none can be built concurrently: each partition may have one of its own.
WHERE w.relation = $1::text::regclass
  AND NOT EXISTS (SELECT FROM pg_class r WHERE r.oid = w.relation AND r.relkind = 'p')
